package laptop_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/detour-dev/detour/integration/cluster"
	"github.com/detour-dev/detour/integration/cluster/badnet"
	"github.com/detour-dev/detour/integration/cluster/laptop"
	"github.com/stretchr/testify/require"
)

// These numbers are kept apart from the suites', which begin at 0.
const (
	first  = 90
	second = 91
)

func local(t *testing.T) *cluster.Cluster {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces and mounts")
	}
	out, err := exec.Command("ip", "netns").Output()
	require.NoError(t, err)
	if !strings.Contains(string(out), "detour-cp") {
		t.Skip("needs the local cluster (ip netns has no detour-cp): run make cluster-up")
	}
	c, err := cluster.Default()
	require.NoError(t, err)
	return c
}

func boot(t *testing.T, i int) *laptop.Laptop {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := laptop.New(ctx, i)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

func run(t *testing.T, l *laptop.Laptop, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := l.Command(ctx, name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

func kubectl(t *testing.T, c *cluster.Cluster, args ...string) string {
	out, err := exec.Command(filepath.Join(c.Dir, "bin", "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig()},
		args...)...).Output()
	require.NoError(t, err)
	require.NotEmpty(t, string(out))
	return string(out)
}

func TestReachesTheAPIServer(t *testing.T) {
	c := local(t)
	l := boot(t, first)
	ca, err := os.ReadFile(c.CA())
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca))
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: l.DialContext, TLSClientConfig: &tls.Config{RootCAs: roots},
	}}
	resp, err := client.Get(c.Server() + "/readyz")
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "ok", string(body))

	path, err := l.Kubeconfig("")
	require.NoError(t, err)
	require.Equal(t, "ok", run(t, l, filepath.Join(c.Dir, "bin", "kubectl"), "--kubeconfig", path, "get", "--raw",
		"/readyz"))
}

func TestReachesTheNodes(t *testing.T) {
	c := local(t)
	l := boot(t, first)
	nodes := strings.Fields(kubectl(t, c, "get", "nodes", "-o",
		`jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}`))
	tried := 0
	for _, n := range nodes {
		if netip.MustParseAddr(n).Is4() {
			conn, err := l.DialContext(t.Context(), "tcp", net.JoinHostPort(n, "10250"))
			require.NoError(t, err)
			require.NoError(t, conn.Close())
			tried++
		}
	}
	require.NotZero(t, tried)
}

func TestReachesNothingElse(t *testing.T) {
	c := local(t)
	l, other := boot(t, first), boot(t, second)
	pod := kubectl(t, c, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o",
		"jsonpath={.items[0].status.podIP}")
	service := kubectl(t, c, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}")
	for _, target := range []string{pod, service} {
		// It is there, for who has a route.
		out, err := exec.Command("nsenter", "--net=/run/netns/detour-node1", "--", "timeout", "20", "bash", "-c",
			"exec 3<>/dev/tcp/"+target+"/53").CombinedOutput()
		require.NoError(t, err, "%s", out)
		unreachable(t, l, net.JoinHostPort(target, "53"))
	}
	unreachable(t, l, net.JoinHostPort(other.Address().String(), "53"))
	unreachable(t, l, net.JoinHostPort(c.HostAddress().String(), "53"))
	unreachable(t, l, "192.0.2.1:53")
	require.Empty(t, strings.TrimSpace(run(t, l, "ip", "route", "show", "default")))
	require.Empty(t, strings.TrimSpace(run(t, l, "ip", "-6", "route", "show", "dev", "eth0")))
}

func unreachable(t *testing.T, l *laptop.Laptop, address string) {
	_, err := l.DialContext(t.Context(), "tcp", address)
	require.ErrorIs(t, err, syscall.ENETUNREACH, "%s", address)
}

func TestHasFilesOfItsOwn(t *testing.T) {
	local(t)
	outside, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	a, b := boot(t, first), boot(t, second)
	require.NoError(t, a.SetResolver(netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")))
	require.Equal(t, "nameserver 192.0.2.53\nnameserver 2001:db8::53\n", run(t, a, "cat", "/etc/resolv.conf"))
	require.Equal(t, "nameserver 127.0.0.1\n", run(t, b, "cat", "/etc/resolv.conf"))

	// A program in there changes its own.
	run(t, b, "sh", "-c", "echo nameserver 198.51.100.1 > /etc/resolv.conf")
	own, err := b.ResolvConf()
	require.NoError(t, err)
	require.Equal(t, "nameserver 198.51.100.1\n", own)
	require.Equal(t, "nameserver 192.0.2.53\nnameserver 2001:db8::53\n", run(t, a, "cat", "/etc/resolv.conf"))
	still, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	require.Equal(t, string(outside), string(still))

	t.Setenv("KUBECONFIG", "/somebody/elses")
	for _, l := range []*laptop.Laptop{a, b} {
		require.Equal(t, fmt.Sprintf("%s %s %s none\n", l.Home(), l.RunDir(), l.StateDir()),
			run(t, l, "sh", "-c",
				`echo "$HOME $DETOUR_RUN_DIR $DETOUR_STATE_DIR ${KUBECONFIG:-none}"; touch "$HOME/a" "$DETOUR_RUN_DIR/b" "$DETOUR_STATE_DIR/c"`))
		require.FileExists(t, filepath.Join(l.Home(), "a"))
	}
}

func TestDoIsInsideAndComesBack(t *testing.T) {
	local(t)
	l := boot(t, first)
	before, err := net.InterfaceByName("detour-host")
	require.NoError(t, err)
	require.NoError(t, l.Do(func() error {
		_, err := net.InterfaceByName("detour-host")
		require.Error(t, err)
		eth0, err := net.InterfaceByName("eth0")
		require.NoError(t, err)
		addresses, err := eth0.Addrs()
		require.NoError(t, err)
		require.Len(t, addresses, 1)
		require.Equal(t, l.Address().String()+"/32", addresses[0].String())
		return nil
	}))
	require.ErrorIs(t, l.Do(func() error { return io.EOF }), io.EOF)
	after, err := net.InterfaceByName("detour-host")
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestARelayIsInTheWay(t *testing.T) {
	c := local(t)
	l := boot(t, first)
	target := strings.TrimPrefix(c.Server(), "https://")
	var inside *badnet.Relay
	require.NoError(t, l.Do(func() (err error) {
		inside, err = badnet.Listen(t.Context(), net.JoinHostPort(l.Address().String(), "0"), target)
		return err
	}))
	defer inside.Close()
	outside, err := badnet.Listen(t.Context(), net.JoinHostPort(c.HostAddress().String(), "0"), target)
	require.NoError(t, err)
	defer outside.Close()
	require.NoError(t, l.Reach(t.Context(), c.HostAddress()))

	for _, r := range []*badnet.Relay{inside, outside} {
		path, err := l.Kubeconfig("https://" + r.Addr())
		require.NoError(t, err)
		get := func(timeout time.Duration) ([]byte, error) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			return l.Command(ctx, filepath.Join(c.Dir, "bin", "kubectl"), "--kubeconfig", path, "get", "--raw",
				"/readyz").CombinedOutput()
		}
		out, err := get(30 * time.Second)
		require.NoError(t, err, "%s", out)
		require.Equal(t, "ok", string(out))
		r.Stall(true)
		_, err = get(2 * time.Second)
		require.Error(t, err, "it does not go through the relay")
		r.Stall(false)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	c := local(t)
	l := boot(t, first)
	// A daemon, one that left the mounts, one that left the network, and one that we are the parent
	// of.
	pids := strings.Fields(run(t, l, "sh", "-c", `
		setsid sleep 1001 >/dev/null 2>&1 & echo $!
		unshare --mount sleep 1002 >/dev/null 2>&1 & echo $!
		unshare --net sleep 1003 >/dev/null 2>&1 & echo $!`))
	require.Len(t, pids, 3)
	child := l.Command(t.Context(), "sleep", "1004")
	require.NoError(t, child.Start())
	exited := make(chan error, 1)
	go func() { exited <- child.Wait() }()
	require.NoError(t, l.Close())
	require.Error(t, <-exited)
	for _, pid := range pids {
		require.False(t, runs(pid), "process %s is left", pid)
	}
	nothingOf(t, c, first)
	require.NoError(t, l.Close()) // again
}

// runs reports whether a process is alive; not every init collects the orphans that have ended at
// once.
func runs(pid string) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// nothingOf checks for namespace, link and files, with ip and the kernel's lists.
func nothingOf(t *testing.T, c *cluster.Cluster, i int) {
	name := cluster.LaptopName(i)
	out, err := exec.Command("ip", "netns").Output()
	require.NoError(t, err)
	require.NotContains(t, string(out), name)
	out, err = exec.Command("nsenter", "--net=/run/netns/detour-cp", "--", "ip", "-o", "link").Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "fabric")
	require.NotContains(t, string(out), name)
	left, err := filepath.Glob(c.LaptopDir(i) + "*")
	require.NoError(t, err)
	require.Empty(t, left)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), name)
}

// The test runs itself as the one that crashes.
func TestClearsWhatACrashLeft(t *testing.T) {
	c := local(t)
	if os.Getenv("LAPTOP_CRASH") != "" {
		l, err := laptop.New(t.Context(), first)
		require.NoError(t, err)
		fmt.Printf("pids %s\n", run(t, l, "sh", "-c", "setsid sleep 1005 >/dev/null 2>&1 & echo $!"))
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
	}
	private := []string{"unshare", "--mount", "--propagation", "private"} // as integration/run.sh does
	for _, prefix := range [][]string{nil, private} {
		args := append(append([]string{}, prefix...), os.Args[0], "-test.run=^TestClearsWhatACrashLeft$")
		crash := exec.Command(args[0], args[1:]...)
		crash.Env = append(os.Environ(), "LAPTOP_CRASH=yes")
		out, err := crash.Output()
		require.Error(t, err)
		_, pid, found := strings.Cut(strings.TrimSpace(string(out)), "pids ")
		require.True(t, found, "%s", out)
		require.True(t, runs(pid), "the crash left nothing to clear")

		l := boot(t, first)
		require.False(t, runs(pid), "process %s is left", pid)
		require.Equal(t, "nameserver 127.0.0.1\n", run(t, l, "cat", "/etc/resolv.conf"))
		require.NoError(t, l.Close())
		nothingOf(t, c, first)
	}
}

func TestOneLaptopIsNotTakenTwice(t *testing.T) {
	local(t)
	l := boot(t, first)
	_, err := laptop.New(t.Context(), first)
	require.ErrorContains(t, err, "this process has it already")
	require.NotEmpty(t, run(t, l, "ip", "link", "show", "eth0"))
}

// A laptop that leaves takes nothing along that the others need: the fabric's address stays
// whatever addresses the laptops' links have.
func TestFabricKeepsItsAddress(t *testing.T) {
	local(t)
	link := func(args ...string) string {
		out, err := exec.Command("nsenter", append([]string{"--net=/run/netns/detour-cp", "--", "ip", "-o", "link"},
			args...)...).CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	_, before, _ := strings.Cut(link("show", "fabric"), "link/ether")
	boot(t, first)
	link("set", cluster.LaptopName(first), "address", "00:00:5e:00:53:01") // of RFC 7042, and the lowest there is
	_, after, _ := strings.Cut(link("show", "fabric"), "link/ether")
	require.Equal(t, before, after)
}
