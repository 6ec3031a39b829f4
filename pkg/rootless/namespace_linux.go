package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/tundev"
)

const (
	namespaceInterface = "detour0"
	// helperTimeout bounds the requests that the helper answers at once; a dial has a time-out of
	// its own.
	helperTimeout = 10 * time.Second
	helperGrace   = 2 * time.Second
)

// Namespace is a network that an ordinary user may make: user, network and mount namespaces that a
// child process, the helper, holds. The helper opens sockets and the TUN inside, and passes their
// descriptors out. Everything else, WireGuard first of all, runs in this process over the host's
// network, and the host's network stays as it is. Its methods are safe for several goroutines.
type Namespace struct {
	log  *slog.Logger
	cmd  *exec.Cmd
	conn *net.UnixConn
	gone chan struct{} // closed when the helper no longer answers
	end  func() error

	// mu guards the fields below.
	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan helperAnswer
}

type helperAnswer struct {
	helperReply
	file *os.File
}

// New starts a helper. command runs a program that calls RunHelper with file descriptor 3. log may
// be nil. The caller calls Close. After an error there is nothing to close.
func New(ctx context.Context, command []string, log *slog.Logger) (*Namespace, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("component", "rootless")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket to the helper: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "helper"), os.NewFile(uintptr(pair[1]), "daemon")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, fmt.Errorf("make a socket to the helper: %w", err)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}},
		// At exec, a user who is not root inside loses all capabilities except these.
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN},
		Setpgid:     true, // Ctrl-C is for the daemon, which then ends everything in order
	}
	if err := cmd.Start(); err != nil {
		_ = conn.Close()
		return nil, explainRefusal(fmt.Errorf("make namespaces: %w", err))
	}
	n := &Namespace{
		log:     log,
		cmd:     cmd,
		conn:    conn.(*net.UnixConn),
		gone:    make(chan struct{}),
		pending: map[uint64]chan helperAnswer{},
	}
	n.end = sync.OnceValue(n.stop)
	// Close waits for it, by gone.
	go n.receive()
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), n.Close())
	}
	return n, nil
}

// PID is the helper's process: /proc/PID/ns leads into the namespaces.
func (n *Namespace) PID() int { return n.cmd.Process.Pid }

// ID names the network namespace, as the link /proc/self/ns/net of a process inside does. It is
// empty when the helper has ended.
func (n *Namespace) ID() string {
	id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.PID()))
	if err != nil {
		return ""
	}
	return id
}

// Gone reports whether the helper has ended, and the network with it.
func (n *Namespace) Gone() bool {
	select {
	case <-n.gone:
		return true
	default:
		return false
	}
}

// DialContext connects from inside. The address must be an IP address.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	timeout := helperTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	f, err := n.call(ctx, helperRequest{Do: requestDial, Network: network, Address: address, Timeout: timeout})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

// Listen listens inside.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	f, err := n.callNow(helperRequest{Do: requestListen, Network: network, Address: address})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

// ListenPacket listens inside.
func (n *Namespace) ListenPacket(network, address string) (net.PacketConn, error) {
	f, err := n.callNow(helperRequest{Do: requestListenPacket, Network: network, Address: address})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FilePacketConn(f)
}

// Bind mounts a file in the place of another one, for the processes inside.
func (n *Namespace) Bind(from, to string) error {
	_, err := n.callNow(helperRequest{Do: requestBind, From: from, To: to})
	return err
}

// Close ends the helper and waits for it. Processes that are still inside keep a network without
// any connection.
func (n *Namespace) Close() error { return n.end() }

func (n *Namespace) stop() error {
	_ = n.conn.Close()
	kill := time.AfterFunc(helperGrace, func() { _ = n.cmd.Process.Kill() })
	defer kill.Stop()
	err := n.cmd.Wait()
	<-n.gone
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("end the helper of rootless mode: %w", err)
	}
	return nil
}

// OpenTUN makes the interface inside, which outlives the device that is made of it here. Its only
// route is the default one; egressTUN decides which packets are for the cluster. With hostLoopback,
// processes inside reach the host's 127.0.0.1 at the address HostLoopback.
func (n *Namespace) OpenTUN(hostLoopback bool) tundev.OpenFunc {
	return func(o tundev.Options) (tun.Device, tundev.HostInterface, error) { return n.openTUN(o, hostLoopback) }
}

func (n *Namespace) openTUN(o tundev.Options, hostLoopback bool) (tun.Device, tundev.HostInterface, error) {
	f, err := n.callNow(helperRequest{Do: requestTUN, Addresses: o.Addresses, MTU: o.MTU})
	if err != nil {
		return nil, nil, explainRefusal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = f.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("take the network interface: %w", err)
	}
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, nil, fmt.Errorf("take the network interface: %w", err)
	}
	offload, err := tundev.NewOffload(device, o.MTU)
	if err != nil {
		_ = device.Close()
		return nil, nil, err
	}
	split, err := newEgressTUN(offload, o.MTU, hostLoopback, n.log)
	if err != nil {
		_ = device.Close()
		return nil, nil, err
	}
	return split, (*namespaceHost)(split), nil
}

// namespaceHost is the tundev.HostInterface of a Namespace. The helper has done everything except
// the cluster's networks.
type namespaceHost egressTUN

// Configure does nothing: the helper has configured the interface already.
func (*namespaceHost) Configure([]netip.Addr, int) error { return nil }

// SetRoutes makes routes the cluster's networks.
func (s *namespaceHost) SetRoutes(routes []netip.Prefix) error {
	(*egressTUN)(s).setClusterNets(routes)
	return nil
}

func (n *Namespace) callNow(req helperRequest) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	return n.call(ctx, req)
}

// call sends the helper a request, and returns the file descriptor of its answer, if any.
func (n *Namespace) call(ctx context.Context, req helperRequest) (*os.File, error) {
	answered := make(chan helperAnswer, 1)
	n.mu.Lock()
	n.lastID++
	req.ID = n.lastID
	n.pending[req.ID] = answered
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.pending, req.ID)
		n.mu.Unlock()
		select {
		case late := <-answered:
			_ = late.file.Close()
		default:
		}
	}()
	raw, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("ask the helper of rootless mode: %w", err)
	}
	if _, err := n.conn.Write(raw); err != nil {
		return nil, fmt.Errorf("ask the helper of rootless mode: %w", err)
	}
	select {
	case a := <-answered:
		switch {
		case a.Error == "":
			return a.file, nil
		case a.Errno != 0:
			return nil, &helperError{text: a.Error, errno: a.Errno}
		}
		return nil, errors.New(a.Error)
	case <-n.gone:
		return nil, errors.New("the helper of rootless mode has ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// receive hands the helper's answers to the callers. It closes the descriptor of an answer that
// comes too late.
func (n *Namespace) receive() {
	defer close(n.gone)
	buf, oob := make([]byte, helperMessageSize), make([]byte, unix.CmsgSpace(4))
	for {
		size, oobSize, _, _, err := n.conn.ReadMsgUnix(buf, oob)
		if err != nil || size == 0 {
			return
		}
		var a helperAnswer
		if messages, err := unix.ParseSocketControlMessage(oob[:oobSize]); err == nil && len(messages) == 1 {
			if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
				a.file = os.NewFile(uintptr(fds[0]), "from the helper")
			}
		}
		if err := json.Unmarshal(buf[:size], &a.helperReply); err != nil {
			n.log.Warn("reading an answer of the helper failed", "err", err)
		}
		n.mu.Lock()
		waiting := n.pending[a.ID]
		delete(n.pending, a.ID)
		if waiting != nil {
			waiting <- a
		}
		n.mu.Unlock()
		if waiting == nil {
			_ = a.file.Close()
		}
	}
}

// helperError is the helper's error, in a form for errors.Is.
type helperError struct {
	text  string
	errno syscall.Errno
}

func (e *helperError) Error() string { return e.text }
func (e *helperError) Unwrap() error { return e.errno }

// explainRefusal says what to do on a machine that does not let an ordinary user do this.
func explainRefusal(err error) error { return explainRefusalBy(os.DirFS("/proc/sys"), err) }

func explainRefusalBy(settings fs.FS, err error) error {
	const instead = "or use root: `detour connect --rootless=false`"
	if errors.Is(err, unix.EACCES) && !canOpenTUN() {
		return fmt.Errorf("%w: ordinary users may not open /dev/net/tun here: `sudo chmod 666 /dev/net/tun`, %s",
			err, instead)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: the kernel has no TUN: `sudo modprobe tun`, %s", err, instead)
	}
	if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	for _, s := range []struct{ file, bad, good string }{
		{"user/max_user_namespaces", "0", "15000"},
		{"kernel/unprivileged_userns_clone", "0", "1"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "0"},
	} {
		raw, rerr := fs.ReadFile(settings, s.file)
		if rerr == nil && strings.TrimSpace(string(raw)) == s.bad {
			return fmt.Errorf("%w: this machine denies user namespaces to ordinary users: `sudo sysctl -w %s=%s`, %s",
				err, strings.ReplaceAll(s.file, "/", "."), s.good, instead)
		}
	}
	return fmt.Errorf(
		"%w: this machine, or the container this runs in, denies user namespaces to ordinary users: allow them, %s",
		err,
		instead,
	)
}

func canOpenTUN() bool { return unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) == nil }
