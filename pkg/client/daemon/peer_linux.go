package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/client/credential"
)

// give makes the socket another user's, to serve that one too.
func give(socket string, uid int) error {
	if err := os.Lchown(socket, uid, -1); err != nil {
		return fmt.Errorf("give the socket to user %d: %w", uid, err)
	}
	return nil
}

// peerOf asks the kernel who connected.
func peerOf(c net.Conn) (who credential.Account, err error) {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return who, errors.New("who connected is not known: it is no unix socket")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return who, err
	}
	controlled := raw.Control(func(fd uintptr) {
		var is *unix.Ucred
		if is, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		who.UID, who.GID = int(is.Uid), int(is.Gid)
		who.Groups, err = peerGroups(fd)
	})
	if err = errors.Join(controlled, err); err != nil {
		return who, fmt.Errorf("ask who connected: %w", err)
	}
	return who, nil
}

// peerGroups are the further groups of who connected.
func peerGroups(fd uintptr) ([]int, error) {
	for size := 64; ; {
		all := make([]uint32, size)
		bytes := uint32(size * int(unsafe.Sizeof(all[0])))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS, uintptr(unsafe.Pointer(&all[0])), uintptr(unsafe.Pointer(&bytes)), 0)
		count := int(bytes) / int(unsafe.Sizeof(all[0]))
		switch {
		case errno == unix.ERANGE && count > size: // the kernel says how many there are
			size = count
			continue
		case errno == unix.ENOPROTOOPT: // before Linux 4.13
			return []int{}, nil
		case errno != 0:
			return nil, errno
		}
		groups := []int{}
		for _, g := range all[:count] {
			groups = append(groups, int(g))
		}
		return groups, nil
	}
}
