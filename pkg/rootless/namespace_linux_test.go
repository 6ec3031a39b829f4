package rootless

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/viftest"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// outsideAddress belongs to a host that is neither in the cluster nor on loopback.
var outsideAddress = netip.MustParseAddr("192.0.2.1")

func namespace(t *testing.T) *Namespace {
	t.Helper()
	n, err := New(t.Context(), []string{"/proc/self/exe", HelperCommand}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

// greeter says hello on each connection to address.
func greeter(t *testing.T, address string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello from "+l.Addr().String())
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func readGreeting(t *testing.T, n *Namespace, address string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), viftest.Timeout)
	defer cancel()
	c, err := n.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(viftest.Timeout)))
	raw, err := io.ReadAll(c)
	return string(raw), err
}

func outside(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	address := &netlink.Addr{IPNet: &net.IPNet{IP: outsideAddress.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	require.NoError(t, netlink.AddrReplace(lo, address))
	t.Cleanup(func() { require.NoError(t, netlink.AddrDel(lo, address)) })
}

func TestNamespaceReachesTheClusterAndOutside(t *testing.T) {
	outside(t)
	n := namespace(t)
	hub, laptop, _, _ := viftest.PairWith(t, vif.Config{OpenTUN: n.OpenTUN(false)})
	require.Equal(t, "detour0", laptop.Name())

	t.Run("the cluster, whole and with half-close", func(t *testing.T) {
		c, err := n.DialContext(t.Context(), "tcp", viftest.Echo(t).String())
		require.NoError(t, err)
		defer c.Close()
		sent := make([]byte, 4<<20)
		var writing sync.WaitGroup
		writing.Go(func() {
			_, err := c.Write(sent)
			assert.NoError(t, err)
			assert.NoError(t, c.(*net.TCPConn).CloseWrite())
		})
		got, err := io.ReadAll(c)
		writing.Wait()
		require.NoError(t, err)
		require.Equal(t, sent, got)
	})

	t.Run("outside, with the host's sockets", func(t *testing.T) {
		address := greeter(t, outsideAddress.String()+":0").String()
		greeting, err := readGreeting(t, n, address)
		require.NoError(t, err)
		require.Equal(t, "hello from "+address, greeting)
	})

	t.Run("outside, many packets to and fro", func(t *testing.T) {
		l, err := net.Listen("tcp", outsideAddress.String()+":0")
		require.NoError(t, err)
		defer l.Close()
		const size = 50 << 20
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, _ = io.CopyN(c, zeros{}, size)
				_ = c.Close()
			}
		}()
		c, err := n.DialContext(t.Context(), "tcp", l.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		got, err := io.Copy(io.Discard, c)
		require.NoError(t, err)
		require.EqualValues(t, size, got)
	})

	t.Run("outside, refused at once", func(t *testing.T) {
		_, err := readGreeting(t, n, netip.AddrPortFrom(outsideAddress, 1).String())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})

	t.Run("outside, datagrams", func(t *testing.T) {
		server, err := net.ListenPacket("udp", outsideAddress.String()+":0")
		require.NoError(t, err)
		defer server.Close()
		go func() {
			buf := make([]byte, 100)
			if size, from, err := server.ReadFrom(buf); err == nil {
				_, _ = server.WriteTo(buf[:size], from)
			}
		}()
		c, err := n.DialContext(t.Context(), "udp", server.LocalAddr().String())
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(viftest.Timeout)))
		_, err = c.Write([]byte("ping"))
		require.NoError(t, err)
		buf := make([]byte, 100)
		size, err := c.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "ping", string(buf[:size]))
	})

	t.Run("not the host's loopback", func(t *testing.T) {
		port := greeter(t, "127.0.0.1:0").Port()
		for _, a := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), HostLoopback} {
			_, err := readGreeting(t, n, netip.AddrPortFrom(a, port).String())
			require.ErrorIs(t, err, syscall.ECONNREFUSED, "%s", a)
		}
	})

	t.Run("a port inside, which the cluster reaches", func(t *testing.T) {
		l, err := n.Listen("tcp", netip.AddrPortFrom(viftest.LaptopAddress, viftest.InboundPort).String())
		require.NoError(t, err)
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
		c, err := hub.Dial(t.Context(), netip.AddrPortFrom(viftest.LaptopAddress, viftest.InboundPort))
		require.NoError(t, err)
		_, err = c.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "hello", string(got))
		require.NoError(t, c.Close())
	})

	t.Run("ports of its own, low ones too", func(t *testing.T) {
		host := greeter(t, "127.0.0.1:0").String()
		for _, address := range []string{host, "127.0.0.1:80"} {
			l, err := n.Listen("tcp", address)
			require.NoError(t, err)
			require.NoError(t, l.Close())
		}
		p, err := n.ListenPacket("udp", netip.AddrPortFrom(viftest.LaptopAddress, 53).String())
		require.NoError(t, err)
		require.NoError(t, p.Close())
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestNamespaceReachesTheHostsLoopbackWhenAllowed(t *testing.T) {
	n := namespace(t)
	viftest.PairWith(t, vif.Config{OpenTUN: n.OpenTUN(true)})
	address := greeter(t, "127.0.0.1:0")
	greeting, err := readGreeting(t, n, netip.AddrPortFrom(HostLoopback, address.Port()).String())
	require.NoError(t, err)
	require.Equal(t, "hello from "+address.String(), greeting)
}

// This process's own network does not change, and bound files are visible inside only.
func TestNamespaceLeavesTheHostAlone(t *testing.T) {
	before, err := netlink.LinkList()
	require.NoError(t, err)
	n := namespace(t)
	viftest.PairWith(t, vif.Config{OpenTUN: n.OpenTUN(false)})
	after, err := netlink.LinkList()
	require.NoError(t, err)
	require.Len(t, after, len(before))

	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	require.NoError(t, os.WriteFile(ours, []byte("ours"), 0o600))
	require.NoError(t, os.WriteFile(theirs, []byte("theirs"), 0o600))
	require.NoError(t, n.Bind(ours, theirs))
	raw, err := os.ReadFile(theirs)
	require.NoError(t, err)
	require.Equal(t, "theirs", string(raw))
	require.ErrorIs(t, n.Bind(filepath.Join(dir, "nothing"), theirs), os.ErrNotExist)
}

func TestNamespaceWithoutHelperIsGone(t *testing.T) {
	n := namespace(t)
	viftest.PairWith(t, vif.Config{OpenTUN: n.OpenTUN(false)})
	require.False(t, n.Gone())
	require.NoError(t, syscall.Kill(n.PID(), syscall.SIGKILL))
	require.Eventually(t, n.Gone, viftest.Timeout, 10*time.Millisecond)
	_, err := n.DialContext(t.Context(), "tcp", "127.0.0.1:1")
	require.Error(t, err)
}

// The limit belongs to the user namespace that the tests run in.
func TestNamespacesSwitchedOff(t *testing.T) {
	const limit = "/proc/sys/user/max_user_namespaces"
	before, err := os.ReadFile(limit)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(limit, []byte("0"), 0))
	t.Cleanup(func() { require.NoError(t, os.WriteFile(limit, before, 0)) })
	_, err = New(t.Context(), []string{"/proc/self/exe", HelperCommand}, nil)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(
		t,
		err,
		"this machine denies user namespaces to ordinary users: `sudo sysctl -w user.max_user_namespaces=15000`, "+
			"or use root: `detour connect --rootless=false`",
	)
}

// Programs inside stay on the network from one session to the next, and wait in between: a laptop
// that has slept makes its session again.
func TestNamespaceOutlivesItsSessions(t *testing.T) {
	n := namespace(t)
	up := func(address string) *vif.Interface {
		private, err := wgkey.NewPrivate()
		require.NoError(t, err)
		i, err := vif.Up(t.Context(), vif.Config{
			OpenTUN:    n.OpenTUN(false),
			PrivateKey: private,
			PeerKey:    private.Public(),
			Addresses:  []netip.Addr{netip.MustParseAddr(address)},
			Dial:       func(ctx context.Context) (vif.Stream, error) { <-ctx.Done(); return vif.Stream{}, ctx.Err() },
		})
		require.NoError(t, err)
		return i
	}
	from := func() string {
		c, err := n.DialContext(t.Context(), "udp", netip.AddrPortFrom(outsideAddress, 9).String())
		require.NoError(t, err)
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).IP.String()
	}
	first := up("198.18.0.2")
	require.Equal(t, "198.18.0.2", from())
	require.NoError(t, first.Close())
	require.Equal(t, "198.18.0.2", from(), "between two sessions")
	second := up("198.18.0.3")
	require.Equal(t, "198.18.0.3", from())
	require.NoError(t, second.Close())

	outside(t)
	viftest.PairWith(t, vif.Config{OpenTUN: n.OpenTUN(false)})
	for _, a := range []netip.Addr{viftest.Service, outsideAddress} {
		address := greeter(t, netip.AddrPortFrom(a, 0).String()).String()
		greeting, err := readGreeting(t, n, address)
		require.NoError(t, err)
		require.Equal(t, "hello from "+address, greeting)
	}
}

// Each setting by which a machine denies user namespaces to ordinary users is named, with the
// command that changes it.
func TestExplainRefusal(t *testing.T) {
	denied := fmt.Errorf("make a user namespace: %w", unix.EPERM)
	for file, c := range map[string]struct{ value, contains string }{
		"user/max_user_namespaces": {
			value:    "0\n",
			contains: "`sudo sysctl -w user.max_user_namespaces=15000`",
		},
		"kernel/unprivileged_userns_clone": {
			value:    "0\n",
			contains: "`sudo sysctl -w kernel.unprivileged_userns_clone=1`",
		},
		"kernel/apparmor_restrict_unprivileged_userns": {
			value:    "1\n",
			contains: "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
		},
		"kernel/apparmor_restrict_unprivileged_unconfined": {
			value: "1\n",
			contains: "this machine, or the container this runs in, denies " +
				"user namespaces to ordinary users: allow them",
		},
	} {
		settings := fstest.MapFS{
			"user/max_user_namespaces":                     {Data: []byte("63432\n")},
			"kernel/unprivileged_userns_clone":             {Data: []byte("1\n")},
			"kernel/apparmor_restrict_unprivileged_userns": {Data: []byte("0\n")},
		}
		settings[file] = &fstest.MapFile{Data: []byte(c.value)}
		err := explainRefusalBy(settings, denied)
		require.ErrorIs(t, err, unix.EPERM)
		require.ErrorContains(t, err, c.contains)
		require.ErrorContains(t, err, "or use root: `detour connect --rootless=false`")
	}
	other := errors.New("something else")
	require.Equal(t, other, explainRefusalBy(fstest.MapFS{}, other))
}

// Packets through the interface wake the daemon, and not the helper that holds the interface.
func TestHelperSleeps(t *testing.T) {
	n := namespace(t)
	viftest.PairWith(t, vif.Config{OpenTUN: n.OpenTUN(false)})
	to := viftest.Echo(t)
	c, err := n.DialContext(t.Context(), "tcp", to.String())
	require.NoError(t, err)
	defer c.Close()
	before := switches(t, n.PID())
	for range 500 {
		viftest.RequireEcho(t, c)
	}
	require.Less(t, switches(t, n.PID())-before, 100)
}

// switches counts how often the threads of a process have gone to sleep.
func switches(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	require.NoError(t, err)
	require.NotEmpty(t, tasks)
	for _, path := range tasks {
		status, err := os.ReadFile(path)
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		count, _, _ := strings.Cut(rest, "\n")
		more, err := strconv.Atoi(strings.TrimSpace(count))
		require.NoError(t, err)
		n += more
	}
	return n
}
