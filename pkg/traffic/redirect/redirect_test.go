package redirect

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

const (
	appPort, agentPort, aliasPort = 8080, 9900, 9950
	// patience is for what must happen, however busy the machine is.
	patience = 20 * time.Second
)

// pod is a network namespace that is reached over a veth pair, as a pod is.
type pod struct {
	fd  int
	ips []string
}

// in runs f in the pod's namespace. Sockets stay in the namespace in which they were made.
func (p pod) in(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	host, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(host)
	require.NoError(t, unix.Setns(p.fd, unix.CLONE_NEWNET))
	defer func() {
		require.NoError(t, unix.Setns(host, unix.CLONE_NEWNET))
		runtime.UnlockOSThread()
	}()
	f()
}

// newPod makes two namespaces: the test's own thread is not touched, because both ends of the pair
// live in new ones.
func newPod(t *testing.T) (client, server pod) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	client, server = pod{fd: namespace(t)}, pod{fd: namespace(t)}
	client.in(t, func() {
		link := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: "c0"},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(server.fd),
		}
		require.NoError(t, netlink.LinkAdd(link))
		configure(t, "c0", "10.1.1.1/24", "fd11::1/64")
	})
	server.in(t, func() { configure(t, "eth0", "10.1.1.2/24", "fd11::2/64") })
	server.ips = []string{"10.1.1.2", "fd11::2"}
	return client, server
}

func namespace(t *testing.T) int {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(old)
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Setns(old, unix.CLONE_NEWNET))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func configure(t *testing.T, name string, addresses ...string) {
	t.Helper()
	for _, n := range []string{"lo", name} {
		link, err := netlink.LinkByName(n)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(link))
	}
	link, err := netlink.LinkByName(name)
	require.NoError(t, err)
	for _, a := range addresses {
		address, err := netlink.ParseAddr(a)
		require.NoError(t, err)
		address.Flags |= unix.IFA_F_NODAD
		require.NoError(t, netlink.AddrAdd(link, address))
	}
}

// serve answers each connection with who it is.
func serve(t *testing.T, port int, says string) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, says)
			_ = c.Close()
		}
	}()
}

func ask(t *testing.T, ip string, port int) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", net.JoinHostPort(ip, fmt.Sprint(port)), patience)
	if err != nil {
		return "refused"
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	return string(answer)
}

// Datagrams are redirected apart from connections to the same number.
func TestApplyDatagrams(t *testing.T) {
	client, server := newPod(t)
	says := func(port int, name string) {
		c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			for b := make([]byte, 100); ; {
				_, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(name), from)
			}
		}()
	}
	asks := func(ip string, port int) string {
		c, err := net.Dial("udp", net.JoinHostPort(ip, fmt.Sprint(port)))
		require.NoError(t, err)
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Write([]byte("who?"))
		require.NoError(t, err)
		b := make([]byte, 100)
		n, err := c.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
	server.in(t, func() {
		serve(t, appPort, "app")
		says(appPort, "app")
		says(agentPort, "agent")
		require.NoError(t,
			Apply(agentconfig.Config{
				Ports: []agentconfig.Port{{App: appPort, Agent: agentPort, Redirect: true, Datagrams: true}},
			}))
	})
	for _, ip := range server.ips {
		client.in(t, func() {
			assert.Equal(t, "agent", asks(ip, appPort))
			assert.Equal(t, "app", ask(t, ip, appPort), "TCP is not touched")
		})
		server.in(t, func() { assert.Equal(t, "app", asks(ip, appPort), "from within the pod") })
	}
}

func TestApply(t *testing.T) {
	client, server := newPod(t)
	config := agentconfig.Config{
		Ports:   []agentconfig.Port{{App: appPort, Agent: agentPort, Redirect: true}, {App: 8081, Agent: 9901}},
		Aliases: []agentconfig.Alias{{Alias: aliasPort, App: appPort}},
	}
	server.in(t, func() {
		serve(t, appPort, "app")
		serve(t, 8081, "other")
		serve(t, agentPort, "agent")
	})
	check := func(want map[int]string) {
		t.Helper()
		for _, ip := range server.ips {
			for port, says := range want {
				client.in(t, func() { assert.Equal(t, says, ask(t, ip, port), "%s port %d from outside", ip, port) })
			}
			server.in(t, func() { assert.Equal(t, "app", ask(t, ip, appPort), "%s from within the pod", ip) })
		}
	}
	check(map[int]string{appPort: "app", 8081: "other", aliasPort: "refused"})

	for range 2 { // the init container runs again when the pod's sandbox is made anew
		server.in(t, func() { require.NoError(t, Apply(config)) })
		check(map[int]string{appPort: "agent", 8081: "other", agentPort: "agent", aliasPort: "app"})
	}

	config.Ports, config.Aliases = config.Ports[1:], nil
	server.in(t, func() { require.NoError(t, Apply(config)) })
	check(map[int]string{appPort: "app", 8081: "other", aliasPort: "refused"})
}

// Of two NAT rules for a port the one of the table that was made last counts. So what
// docs/guides/rollouts-and-meshes.md says of service meshes holds: whose init container comes last
// has the port.
func TestOrderOfTables(t *testing.T) {
	const proxyPort = 15006
	ours := func() error {
		return Apply(agentconfig.Config{Ports: []agentconfig.Port{{App: appPort, Agent: agentPort, Redirect: true}}})
	}
	theirs := func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		// the one that iptables makes
		table := conn.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
		chain := conn.AddChain(&nftables.Chain{
			Name:     "PREROUTING",
			Table:    table,
			Type:     nftables.ChainTypeNAT,
			Hooknum:  nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityNATDest,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule(unix.IPPROTO_TCP, appPort, proxyPort)})
		return conn.Flush()
	}
	for name, c := range map[string]struct {
		order []func() error
		want  string
	}{
		"the mesh's last": {[]func() error{ours, theirs}, "proxy"},
		"detour's last":   {[]func() error{theirs, ours}, "agent"},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := newPod(t)
			server.in(t, func() {
				serve(t, appPort, "app")
				serve(t, agentPort, "agent")
				serve(t, proxyPort, "proxy")
				for _, apply := range c.order {
					require.NoError(t, apply())
				}
			})
			client.in(t, func() { assert.Equal(t, c.want, ask(t, server.ips[0], appPort)) })
			server.in(t, func() {
				assert.Equal(t, "app", ask(t, server.ips[0], appPort), "from within the pod, as the proxy dials")
			})
		})
	}
}

// A redirection that is held can be set anew and taken back, beside others.
func TestHold(t *testing.T) {
	client, server := newPod(t)
	server.in(t, func() {
		serve(t, appPort, "app")
		serve(t, 8081, "other")
		serve(t, agentPort, "agent")
	})
	check := func(want map[int]string) {
		t.Helper()
		for _, ip := range server.ips {
			for port, says := range want {
				client.in(t, func() { assert.Equal(t, says, ask(t, ip, port), "%s port %d from outside", ip, port) })
			}
			server.in(t, func() { assert.Equal(t, "app", ask(t, ip, appPort), "%s from within the pod", ip) })
		}
	}
	open := echo(t, client, server, 8082, 8082)
	h, other := NewHold("a"), NewHold("b")
	set := func(h *Hold, ports map[uint16]uint16) {
		t.Helper()
		server.in(t, func() { require.NoError(t, h.Set(ports)) })
	}
	server.in(t, func() { require.NoError(t, h.Open()); require.NoError(t, other.Open()) })
	check(map[int]string{appPort: "app", 8081: "other"})
	set(h, map[uint16]uint16{appPort: agentPort})
	check(map[int]string{appPort: "agent", 8081: "other"})
	set(h, map[uint16]uint16{appPort: agentPort, 8081: agentPort, 8082: agentPort})
	open("still the app's")
	check(map[int]string{appPort: "agent", 8081: "agent"})
	set(h, map[uint16]uint16{appPort: agentPort})
	set(other, map[uint16]uint16{8081: agentPort})
	check(map[int]string{appPort: "agent", 8081: "agent"})
	set(h, map[uint16]uint16{appPort: agentPort, 8083: 9983})
	led := echo(t, client, server, 8083, 9983)
	led("to the agent")
	set(h, nil)
	check(map[int]string{appPort: "app", 8081: "agent"})
	set(other, nil)
	check(map[int]string{appPort: "app", 8081: "other"})
	open("and now")
	led("goes on to where it was led")

	set(h, map[uint16]uint16{appPort: agentPort})
	require.NoError(t, h.Close())
	require.NoError(t, h.Close(), "again")
	require.NoError(t, other.Close())
	check(map[int]string{appPort: "app", 8081: "other"})
	open("and then")
}

// echo opens a connection to a port of the pod, where something listens on what may be another
// port, and returns what says something over it and waits for the same.
func echo(t *testing.T, client, server pod, port, listens int) func(string) {
	t.Helper()
	server.in(t, func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", listens))
		require.NoError(t, err)
		var serving sync.WaitGroup
		accepted := make(chan net.Conn, 1)
		serving.Go(func() {
			if c, err := l.Accept(); err == nil {
				accepted <- c
				_, _ = io.Copy(c, c)
			}
		})
		t.Cleanup(func() {
			_ = l.Close()
			select {
			case c := <-accepted: // its client may be gone without a word, with its network
				_ = c.Close()
			default:
			}
			serving.Wait()
		})
	})
	var c net.Conn
	client.in(t, func() {
		var err error
		c, err = net.Dial("tcp", net.JoinHostPort(server.ips[0], fmt.Sprint(port)))
		require.NoError(t, err)
	})
	t.Cleanup(func() { _ = c.Close() })
	return func(s string) {
		t.Helper()
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		_, err := io.WriteString(c, s)
		require.NoError(t, err)
		got := make([]byte, len(s))
		_, err = io.ReadFull(c, got)
		require.NoError(t, err)
		require.Equal(t, s, string(got))
	}
}

// Connections that are under way while redirections come and go reach the app or the agent.
func TestHoldUnderLoad(t *testing.T) {
	client, server := newPod(t)
	server.in(t, func() { answer(t, appPort); answer(t, agentPort) })
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	failures := make(chan error, 1000)
	for range 8 {
		asking.Go(func() {
			client.in(t, func() {
				for ctx.Err() == nil {
					time.Sleep(time.Millisecond)
					if err := question(net.JoinHostPort(server.ips[0], fmt.Sprint(appPort))); err != nil {
						failures <- err
					}
				}
			})
		})
	}
	h := NewHold("a")
	for _, step := range []func() error{
		h.Open,
		func() error { return h.Set(map[uint16]uint16{appPort: agentPort}) },
		func() error { return h.Set(nil) },
		func() error { return h.Set(map[uint16]uint16{appPort: agentPort}) },
		func() error { return h.Set(nil) },
	} {
		time.Sleep(100 * time.Millisecond)
		server.in(t, func() { require.NoError(t, step()) })
	}
	time.Sleep(100 * time.Millisecond)
	stop()
	asking.Wait()
	close(failures)
	for err := range failures {
		assert.NoError(t, err)
	}
	require.NoError(t, h.Close())
}

func answer(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
}

func question(address string) error {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "question"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, len("question")))
	return err
}
