package suite

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster/laptop"
	"github.com/detour-dev/detour/integration/suite/kit"
)

// The main job: from before `detour intercept` until after `detour leave` no request fails, and the
// right edition answers each one.
func TestInterceptAndLeaveUnderLoad(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog), kit.Uses(kit.Machine, kit.Frontend))
	kit.RemoveAgent(t, "catalog")
	nodes := strings.Fields(kit.Query(t, "shop", "pods -l app=catalog", "{.items[*].spec.nodeName}"))
	require.Len(t, nodes, 3)
	require.Subset(t, nodes, []string{"node1", "node2"})
	kit.Connect(t)
	port := kit.ServePage(t)
	require.Equal(t, "cluster", kit.Edition(t, kit.FrontendURL))
	stopped := []func() (int, []error){
		kit.Load(t, kit.FrontendURL, true), kit.Load(t, "http://catalog.shop/", true),
		kit.Load(t, "http://catalog.shop/", false),
	}

	kit.Detour(t, "intercept", "catalog", "--port", port)
	require.Equal(t, "laptop", kit.Edition(t, kit.FrontendURL), "the first request after intercept")
	for range 30 {
		require.Equal(t, "laptop", kit.Edition(t, kit.FrontendURL))
		require.Equal(t, "laptop", kit.Edition(t, "http://catalog.shop/"))
	}
	columns := kit.Kubectl(t, "get", "sessions,intercepts", "-A")
	require.Contains(t, columns, "Active")
	require.Contains(t, columns, "3/3")

	kit.Detour(t, "leave", "catalog")
	for range 30 {
		require.Equal(t, "cluster", kit.Edition(t, kit.FrontendURL))
	}
	for _, stop := range stopped {
		n, failures := stop()
		require.Empty(t, failures)
		require.Greater(t, n, 100)
	}
}

// Nftables redirects a numeric target port, over IPv4 and IPv6, for everybody and for one
// developer. The workload's other port is not touched, and probes still reach the app.
func TestNumericTargetPort(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog), kit.Uses(kit.Machine))
	kit.Kubectl(t, "-n", "shop", "expose", "deployment/catalog", "--name=numeric", "--port=81", "--target-port=8080",
		`--overrides={"spec":{"ipFamilyPolicy":"PreferDualStack"}}`)
	t.Cleanup(func() { kit.Kubectl(t, "-n", "shop", "delete", "service", "numeric") })
	urls := []string{"http://numeric.shop:81/"}
	for _, ip := range strings.Fields(kit.Query(t, "shop", "service numeric", "{.spec.clusterIPs[*]}")) {
		urls = append(urls, "http://"+net.JoinHostPort(ip, "81")+"/")
	}
	if v6 := urls[len(urls)-1]; !strings.Contains(v6, "[") {
		t.Log("the cluster has no IPv6:", urls)
	}
	kit.Connect(t)
	port := kit.ServePage(t)
	out := kit.Detour(t, "intercept", "numeric", "--port", port+":81")
	require.Contains(t, out, "nftables")
	asked := time.Now()
	for _, url := range urls {
		require.Equal(t, "laptop", kit.Edition(t, url), "%s asked at %s", url, asked)
	}
	kit.WaitForRollout(t, "shop", "deployment/catalog") // all pods are Ready: their probes reach the app

	out, err := kit.Run("detour", "intercept", "catalog", "--port", port)
	require.Error(t, err)
	require.Regexp(t, `is intercepted by you since \d{4}-\d\d-\d\d .*: run .detour leave numeric-`, out,
		"a second intercept says who holds the port")
	kit.Detour(t, "leave", "numeric")
	for _, url := range urls {
		require.Equal(t, "cluster", kit.Edition(t, url), url)
	}

	kit.Detour(t, "intercept", "numeric", "--port", port+":81", "--header", "x-dev=alice")
	for _, url := range urls {
		require.Equal(t, "cluster", kit.Edition(t, url), url)
		page, err := kit.Run("curl", "-sS", "--max-time", "10", "-H", "x-dev: alice", url)
		require.NoError(t, err, page)
		require.Equal(t, "laptop", kit.EditionOf(page), url)
	}
	kit.Detour(t, "leave", "numeric")
}

func TestStatefulSetWithHeadlessService(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine))
	kit.Kubectl(t, "apply", "-f", kit.Testdata("stateful.yaml"))
	t.Cleanup(func() {
		kit.Kubectl(t, "delete", "-f", kit.Testdata("stateful.yaml"))
	})
	kit.WaitForRollout(t, "shop", "statefulset/ledger")
	kit.Connect(t)
	port := kit.ServePage(t)
	both := func() { // after a rollout each pod has a new address, and DNS knows it a moment later
		t.Helper()
		for _, pod := range []string{"ledger-0", "ledger-1"} {
			kit.WaitForEndpoints(t, "http://"+pod+".ledger.shop:8080/")
		}
	}
	both()
	require.Equal(t, "cluster", kit.Edition(t, "http://ledger-0.ledger.shop:8080/"))
	kit.Detour(t, "intercept", "ledger", "--port", port)
	both()
	require.Equal(t, "laptop", kit.Edition(t, "http://ledger-0.ledger.shop:8080/"))
	require.Equal(t, "laptop", kit.Edition(t, "http://ledger-1.ledger.shop:8080/"))
	kit.Detour(t, "leave", "ledger")
	require.Equal(t, "cluster", kit.Edition(t, "http://ledger-0.ledger.shop:8080/"))
}

// A killed daemon costs the team nothing, and the next command restores the laptop.
func TestKilledDaemon(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine, kit.Catalog), kit.Uses(kit.Frontend))
	before, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	kit.Detour(t, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = kit.Run("detour", "quit") }) // if the test fails before the daemon is killed
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "catalog", "--port", port)
	// Any mark will do: the service is intercepted as a whole.
	w := kit.MonitorCatalog(t, kit.NodeTransports(t, "catalog"), "alice")
	pid := kit.DaemonPID(t)
	kit.Eventually(t, func() bool { return kit.ClusterEdition() == "laptop" })
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	fault := time.Now()
	time.Sleep(3 * time.Second)
	w.RequireFailOpen(t, fault, 2*time.Second)
	require.Equal(t, "cluster", kit.ClusterEdition())
	require.Equal(t, "not connected", kit.Detour(t, "status"))
	after, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	_, err = net.InterfaceByName("detour0")
	require.Error(t, err)
}

// A deleted traffic-manager comes back, and so does the session, without any command.
func TestDeletedManager(t *testing.T) {
	kit.Connect(t)
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "catalog", "--port", port)
	kit.Kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager", "--wait=true")
	kit.Eventually(t, func() bool {
		page, err := kit.Get(&http.Client{
			Transport: &http.Transport{DisableKeepAlives: true},
			Timeout:   2 * time.Second,
		}, kit.FrontendURL)
		return err == nil && kit.EditionOf(page) == "laptop"
	})
	kit.Detour(t, "leave", "catalog")
	require.Equal(t, "cluster", kit.Edition(t, kit.FrontendURL))
}

func TestBadInputIsOneSentence(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine))
	kit.Connect(t)
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"unknown service": {
			[]string{"intercept", "katalog", "--port", "18080"},
			"service katalog does not exist in namespace shop",
		},
		"unknown port": {
			[]string{"intercept", "catalog", "--port", "18080:99"},
			"service catalog has no port 99: it has 80 (http)",
		},
		"no local port": {
			[]string{"intercept", "catalog", "--port", "http"},
			`--port "http" is not LOCAL[:REMOTE]`,
		},
		"not intercepted": {[]string{"leave", "catalog"}, "there is no intercept to leave"},
		"other namespace": {[]string{"connect", "-n", "default"}, "already connected to namespace shop"},
		"unknown output":  {[]string{"status", "-o", "xml"}, "use json or yaml"},
		"unreachable":     {[]string{"list", "--server", "https://127.0.0.1:1"}, "cannot be reached"},
		"wrong credentials": {[]string{
			"list", "--token", "expired", "--kubeconfig", "/dev/null", "--server",
			"https://172.30.0.1:6443", "--insecure-skip-tls-verify",
		}, "credentials"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := kit.Run("detour", c.args...)
			require.Error(t, err, out)
			lines := strings.Split(out, "\n")
			require.Contains(t, lines[len(lines)-1], c.says)
		})
	}
	require.NotContains(t, kit.Kubectl(t, "get", "intercepts", "-A"), "katalog",
		"a refused intercept leaves nothing behind")
}

// One port of a service with two ports is intercepted. The other port works as before.
func TestOneOfTwoPorts(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine, kit.Target))
	kit.DeployTarget(t)
	t.Cleanup(func() { // later tests expect it without an agent
		kit.Kubectl(t, "-n", "other", "patch", "deployment", "target", "--type=merge", "-p",
			`{"spec":{"template":{"metadata":{"annotations":{"detour.dev/agent":null}}}}}`)
	})
	kit.Detour(t, "connect", "-n", "other")
	t.Cleanup(func() { kit.Detour(t, "quit") })
	port := kit.ServePage(t)
	first := kit.FreePorts(t, 2)
	bulk, next := strconv.Itoa(first), strconv.Itoa(first+1)
	ip := kit.Query(t, "other", "service target", "{.spec.clusterIP}")
	require.Contains(t, kit.DetourFails(t, "intercept", "target", "--port", port),
		"has several ports, 80 (http), 9000 (bulk), 9001 (next): say which")

	out := kit.Detour(t, "intercept", "target", "--port", bulk+":bulk")
	require.Contains(t, out, "warning: nothing listens on local port "+bulk+" yet")
	out = kit.Detour(t, "intercept", "target", "--port", port+":http")
	require.NotContains(t, out, "warning")
	kit.WaitForEndpoints(t, "http://"+ip+"/")
	require.Equal(t, "laptop", kit.Edition(t, "http://"+ip+"/"))
	kit.Detour(t, "leave", "target", "--port", "9000")
	require.Equal(t, "laptop", kit.Edition(t, "http://"+ip+"/"))
	c, err := net.Dial("tcp", ip+":9000")
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("u12345"))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	count, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, []byte{0, 0, 0, 0, 0, 0, 0, 5}, count, "the cluster's pod counted")
	kit.Detour(t, "leave", "target")

	t.Run("both at once, or none", func(t *testing.T) {
		require.Contains(t, kit.DetourFails(t, "intercept", "target", "--port", port+":http", "--port",
			bulk+":nothing"), "has no port nothing")
		require.Contains(t, kit.Detour(t, "status"), "intercepts  none")
		kit.ServeChecksum(t, bulk)
		counted := func() {
			t.Helper()
			sent := make([]byte, 3<<20)
			_, _ = rand.NewChaCha8([32]byte{}).Read(sent)
			c, err := net.Dial("tcp", ip+":9000")
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(kit.Patience(t))))
			_, err = c.Write(sent)
			require.NoError(t, err)
			require.NoError(t, c.(*net.TCPConn).CloseWrite())
			said, err := io.ReadAll(c)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("the laptop got %x", sha256.Sum256(sent)), string(said))
		}
		kit.Detour(t, "intercept", "target", "--port", port+":http", "--port", bulk+":bulk")
		require.Equal(t, "laptop", kit.Edition(t, "http://"+ip+"/"))
		counted()
		kit.Detour(t, "leave", "target")
		require.Contains(t, kit.Detour(t, "status"), "intercepts  none")

		kit.Serve(t, next, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"edition":"laptop"}`) })
		kit.Detour(t, "intercept", "target", "--port", bulk+"-"+next+":9000-9001")
		counted()
		require.Equal(t, "laptop", kit.Edition(t, "http://"+ip+":9001/"))
		kit.Detour(t, "leave", "target")
		require.Contains(t, kit.Detour(t, "status"), "intercepts  none")
	})
}

// An intercept with a time to live ends by itself, on the laptop too.
func TestTimeToLive(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine, kit.Catalog), kit.Uses(kit.Frontend))
	kit.Connect(t)
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "catalog", "--port", port) // rolls the agent out
	kit.Detour(t, "leave", "catalog")
	kit.Detour(t, "intercept", "catalog", "--port", port, "--ttl", "10s", "--on-failure", "error")
	require.Equal(t, "laptop", kit.ClusterEdition())
	kit.Eventually(t, func() bool { return kit.ClusterEdition() == "cluster" })
	kit.Eventually(t, func() bool { return strings.Contains(kit.Detour(t, "status"), "intercepts  none") })
	require.NotContains(t, kit.Kubectl(t, "get", "intercepts", "-A"), "catalog")
}

// While this machine holds the port, a second laptop is told who does.
func TestSecondLaptop(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog), kit.Uses(kit.Machine, kit.Frontend))
	second, err := laptop.New(t.Context(), 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, second.Close()) })
	config, err := second.Kubeconfig("")
	require.NoError(t, err)
	on := func(args ...string) (string, error) {
		out, err := second.Command(t.Context(), "detour", append(args, "--kubeconfig", config)...).CombinedOutput()
		return string(out), err
	}

	kit.Connect(t)
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "catalog", "--port", port)
	out, err := on("intercept", "catalog", "--port", port, "-n", "shop")
	require.Error(t, err, out)
	require.Contains(t, out, "is intercepted by")
	require.Equal(t, "laptop", kit.ClusterEdition())

	page, err := second.Command(t.Context(), "curl", "-sS", "--max-time", "10", "http://catalog.shop/").CombinedOutput()
	require.NoError(t, err, string(page))
	require.Equal(t, "laptop", kit.EditionOf(string(page)), "a second laptop sees what everybody sees")
	out, err = on("quit")
	require.NoError(t, err, out)
	require.Equal(t, "laptop", kit.ClusterEdition())
	kit.Detour(t, "leave", "catalog")
}

// A laptop sleeps for so long that its session is given up. It comes back with everything, without
// any command, also with a port that somebody else has taken meanwhile, as soon as that is free.
// When somebody deletes the session while the laptop is awake, the session ends and the laptop is
// restored.
func TestDeletedSession(t *testing.T) {
	parts := func() string {
		return kit.Query(t, "detour-system", "services,roles",
			"{.items[*].metadata.name} {.items[*].rules[*].resources}")
	}
	kit.Detour(t, "install", "--image", kit.ManagerImage, "--set", "sessionTTL=8s", "--set",
		"udp.enabled=false,attach=false,connect.portForward=false")
	t.Cleanup(func() {
		kit.Detour(t, "install", "--image", kit.ManagerImage, "--set", "sessionTTL=10m", "--set",
			"udp.enabled=true,attach=true,connect.portForward=true")
		require.Contains(t, parts(), "traffic-manager-udp")
		require.Contains(t, parts(), "pods/portforward")
	})
	kit.Connect(t)
	// The parts that this installation lacks.
	require.NotContains(t, parts(), "traffic-manager-udp")
	require.NotContains(t, parts(), "pods/portforward")
	require.Contains(t, kit.Detour(t, "status"), "up, api-server-upgrade")
	kit.RemoveAgent(t, "stock")
	require.Contains(t, kit.DetourFails(t, "intercept", "stock", "--port", "18080", "--attach"),
		"may not attach agents to running pods here, which the chart's value attach turns off: leave out --attach")
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "catalog", "--port", port)
	session := func() string { return kit.Kubectl(t, "-n", "shop", "get", "sessions", "-o", "name") }
	first := session()
	without, stillReaches := kit.StartRootlessLoop(t)

	pid := kit.DaemonPID(t)
	for _, p := range []int{pid, without.DaemonPID()} {
		require.NoError(t, syscall.Kill(p, syscall.SIGSTOP))
		t.Cleanup(func() { _ = syscall.Kill(p, syscall.SIGCONT) })
	}
	kit.Eventually(t, func() bool { return session() == "" }, "the sessions are given up")
	require.Equal(t, "cluster", kit.ClusterEdition())

	require.NoError(t, syscall.Kill(without.DaemonPID(), syscall.SIGCONT))
	stillReaches()
	without.Detour("quit")
	require.Empty(t, session())
	second := kit.NewLaptop(t) // on which nothing listens
	second.Detour("intercept", "catalog", "--port", port, "-n", "shop")
	other := session()
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	kit.Eventually(t, func() bool {
		out, err := kit.Run("detour", "status")
		return err == nil && strings.Contains(out, "Refused") && strings.Contains(out, "is intercepted by")
	}, "its status says who has the port")
	second.Detour("quit")
	kit.Eventually(t, func() bool { return kit.ClusterEdition() == "laptop" }, "the intercept is back")
	require.NotContains(t, []string{first, other}, session())

	kit.Kubectl(t, "-n", "shop", "delete", session())
	kit.Eventually(t, func() bool {
		return strings.Contains(kit.Detour(t, "status"), "the session was deleted in the cluster")
	})
	require.Equal(t, "cluster", kit.ClusterEdition())
	_, err := net.InterfaceByName("detour0")
	require.Error(t, err)
}
