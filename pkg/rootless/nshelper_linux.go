package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/tundev"
)

// The requests of a Namespace to its helper. Each message is one packet of a SOCK_SEQPACKET pair; a
// file descriptor comes with the packet.
const (
	requestTUN          = "tun"
	requestListen       = "listen"
	requestListenPacket = "listen-packet"
	requestDial         = "dial"
	requestBind         = "bind"

	helperMessageSize = 64 << 10
)

type helperRequest struct {
	ID        uint64
	Do        string
	Network   string        `json:",omitempty"` // listen, dial
	Address   string        `json:",omitempty"`
	Timeout   time.Duration `json:",omitempty"` // dial
	Addresses []netip.Addr  `json:",omitempty"` // tun
	MTU       int           `json:",omitempty"`
	From, To  string        `json:",omitempty"` // bind
}

// helperReply comes with at most one file descriptor.
type helperReply struct {
	ID    uint64
	Error string        `json:",omitempty"`
	Errno syscall.Errno `json:",omitempty"` // the errno of Error, for errors.Is
}

// RunHelper is the whole life of a helper: a process that is alone in new user, network and mount
// namespaces, and does there what the daemon outside requests over socket. It returns when the
// daemon ends. The namespaces end with it, unless processes are still inside.
func RunHelper(socket *os.File) error {
	// A failure is reported to the daemon's first request.
	private := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if private != nil {
		private = fmt.Errorf("make the mounts private: %w", private)
	}
	conn, err := net.FileConn(socket)
	if err != nil {
		return fmt.Errorf("take the daemon's socket: %w", err)
	}
	_ = socket.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("the daemon's socket is not a unix socket")
	}
	defer unixConn.Close()
	var h helper
	var serving sync.WaitGroup
	defer serving.Wait()
	buf := make([]byte, helperMessageSize)
	for {
		n, err := unixConn.Read(buf)
		if err != nil || n == 0 {
			return nil //nolint:nilerr // the daemon has ended
		}
		var req helperRequest
		if err := json.Unmarshal(buf[:n], &req); err != nil {
			return fmt.Errorf("read the daemon's request: %w", err)
		}
		serving.Go(func() {
			reply := helperReply{ID: req.ID}
			var file *os.File
			err := private
			if err == nil {
				file, err = h.do(req)
			}
			if err != nil {
				reply.Error = err.Error()
				_ = errors.As(err, &reply.Errno)
			}
			var rights []byte
			if file != nil {
				defer file.Close()
				rights = unix.UnixRights(int(file.Fd()))
			}
			if raw, err := json.Marshal(reply); err == nil {
				_, _, _ = unixConn.WriteMsgUnix(raw, rights, nil)
			}
		})
	}
}

// helper is the state of a helper.
type helper struct {
	// mu guards the fields below.
	mu sync.Mutex
	// device is the descriptor of the interface, 0 before the first request. It is no *os.File,
	// because each packet would wake the helper's poller too.
	device int
	host   tundev.HostInterface
}

func (h *helper) do(r helperRequest) (*os.File, error) {
	switch r.Do {
	case requestTUN:
		return h.tun(r)
	case requestListen:
		l, err := net.Listen(r.Network, r.Address)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return fileOf(l)
	case requestListenPacket:
		l, err := net.ListenPacket(r.Network, r.Address)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return fileOf(l)
	case requestDial:
		ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
		defer cancel()
		var d net.Dialer
		c, err := d.DialContext(ctx, r.Network, r.Address)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return fileOf(c)
	case requestBind:
		if err := unix.Mount(r.From, r.To, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("mount %s in the place of %s: %w", r.From, r.To, err)
		}
		return nil, nil
	}
	return nil, fmt.Errorf("unknown request %q", r.Do)
}

func fileOf(socket any) (*os.File, error) {
	f, ok := socket.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%T has no file descriptor", socket)
	}
	return f.File()
}

// tun passes the interface out, with the requested addresses and a default route. The interface is
// made once, and stays when the daemon has closed its device: programs inside then wait for the
// next session, and get no error that there is no network.
func (h *helper) tun(r helperRequest) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.device == 0 {
		if err := h.makeTUN(r.MTU); err != nil {
			return nil, err
		}
	}
	if err := h.host.Configure(r.Addresses, r.MTU); err != nil {
		return nil, err
	}
	everything := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	if err := h.host.SetRoutes(everything); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(h.device), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pass the interface on: %w", err)
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

// makeTUN makes the interface and brings the loopback up. Ordinary users may listen on every port
// in here, because the namespace has no other user to protect.
func (h *helper) makeTUN(mtu int) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring the loopback up: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0); err != nil {
		return fmt.Errorf("open the low ports: %w", err)
	}
	device, host, err := tundev.Create(namespaceInterface, mtu)
	if err != nil {
		return err
	}
	defer device.Close() // the daemon reads the interface; it stays with the duplicated descriptor
	native, ok := device.(*tun.NativeTun)
	if !ok {
		return fmt.Errorf("%T has no file descriptor", device)
	}
	var fd int
	var duplicated error
	raw, err := native.File().SyscallConn()
	if err == nil {
		err = raw.Control(func(original uintptr) { fd, duplicated = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0) })
	}
	if err := errors.Join(err, duplicated); err != nil {
		return fmt.Errorf("keep the interface: %w", err)
	}
	h.device, h.host = fd, host
	return nil
}
