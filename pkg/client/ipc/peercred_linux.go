package ipc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/client/credential"
)

// GrantSocket makes another user the owner of the socket, so that the daemon serves that user too.
func GrantSocket(p Paths, uid int) error {
	if err := os.Lchown(p.Socket(), uid, -1); err != nil {
		return fmt.Errorf("give the socket to user %d: %w", uid, err)
	}
	return nil
}

// peerAccount asks the kernel which user has connected.
func peerAccount(c net.Conn) (account credential.Account, err error) {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return account, errors.New("the caller's account is unknown: the connection is not a Unix socket")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return account, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var ucred *unix.Ucred
		if ucred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		account.UID, account.GID = int(ucred.Uid), int(ucred.Gid)
		account.Groups, err = peerGroups(fd)
	})
	if err = errors.Join(controlErr, err); err != nil {
		return account, fmt.Errorf("ask the kernel for the caller's account: %w", err)
	}
	return account, nil
}

// peerGroups returns the supplementary groups of the user who has connected.
func peerGroups(fd uintptr) ([]int, error) {
	for size := 64; ; {
		all := make([]uint32, size)
		bytes := uint32(size * int(unsafe.Sizeof(all[0])))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&all[0])), uintptr(unsafe.Pointer(&bytes)), 0)
		count := int(bytes) / int(unsafe.Sizeof(all[0]))
		switch {
		case errno == unix.ERANGE && count > size: // the kernel has returned the number of groups
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
