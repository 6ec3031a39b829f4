package suite

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster/laptop"
)

const frontend = "http://frontend.shop/"

// The main job: not one request fails from before intercept until after leave, and each answer comes from where it should.
func TestInterceptAndLeaveUnderLoad(t *testing.T) {
	withoutAgent(t, "catalog")
	nodes := strings.Fields(kubectl(t, "-n", "shop", "get", "pods", "-l", "app=catalog", "-o", "jsonpath={.items[*].spec.nodeName}"))
	require.Len(t, nodes, 3)
	require.Subset(t, nodes, []string{"node1", "node2"})
	connected(t)
	port := laptopService(t)
	require.Equal(t, "cluster", edition(t, frontend))
	stopped := []func() (int, []error){load(t, frontend, true), load(t, "http://catalog.shop/", true), load(t, "http://catalog.shop/", false)}

	detour(t, "intercept", "catalog", "--port", port)
	require.Equal(t, "laptop", edition(t, frontend), "the first request after intercept")
	for range 30 {
		require.Equal(t, "laptop", edition(t, frontend))
		require.Equal(t, "laptop", edition(t, "http://catalog.shop/"))
	}
	columns := kubectl(t, "get", "sessions,intercepts", "-A")
	require.Contains(t, columns, "Active")
	require.Contains(t, columns, "3/3")

	detour(t, "leave", "catalog")
	for range 30 {
		require.Equal(t, "cluster", edition(t, frontend))
	}
	for _, stop := range stopped {
		n, failures := stop()
		require.Empty(t, failures)
		require.Greater(t, n, 100)
	}
}

// A numeric target port is redirected by nftables, over IPv4 and IPv6, for everybody and for one; the other port of the workload is not touched,
// and probes go on to reach the app.
func TestNumericTargetPort(t *testing.T) {
	kubectl(t, "-n", "shop", "expose", "deployment/catalog", "--name=numeric", "--port=81", "--target-port=8080", `--overrides={"spec":{"ipFamilyPolicy":"PreferDualStack"}}`)
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "service", "numeric") })
	urls := []string{"http://numeric.shop:81/"}
	for _, ip := range strings.Fields(kubectl(t, "-n", "shop", "get", "service", "numeric", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		urls = append(urls, "http://"+net.JoinHostPort(ip, "81")+"/")
	}
	if v6 := urls[len(urls)-1]; !strings.Contains(v6, "[") {
		t.Log("the cluster has no IPv6:", urls)
	}
	connected(t)
	port := laptopService(t)
	out := detour(t, "intercept", "numeric", "--port", port+":81")
	require.Contains(t, out, "nftables")
	asked := time.Now()
	for _, url := range urls {
		require.Equal(t, "laptop", edition(t, url), "%s asked at %s", url, asked)
	}
	kubectl(t, "-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s") // all are Ready: their probes reach the app

	out, err := command("detour", "intercept", "catalog", "--port", port)
	require.Error(t, err)
	require.Regexp(t, `is intercepted by you since \d{4}-\d\d-\d\d .*: run .detour leave numeric-`, out, "a second intercept says who holds the port")
	detour(t, "leave", "numeric")
	for _, url := range urls {
		require.Equal(t, "cluster", edition(t, url), url)
	}

	detour(t, "intercept", "numeric", "--port", port+":81", "--header", "x-dev=alice")
	for _, url := range urls {
		require.Equal(t, "cluster", edition(t, url), url)
		page, err := command("curl", "-sS", "--max-time", "10", "-H", "x-dev: alice", url)
		require.NoError(t, err, page)
		require.Equal(t, "laptop", editionOf(page), url)
	}
	detour(t, "leave", "numeric")
}

func TestStatefulSetWithHeadlessService(t *testing.T) {
	t.Parallel()
	kubectl(t, "apply", "-f", filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/stateful.yaml"))
	t.Cleanup(func() {
		kubectl(t, "delete", "-f", filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/stateful.yaml"))
	})
	kubectl(t, "-n", "shop", "rollout", "status", "statefulset/ledger", "--timeout=120s")
	connected(t)
	port := laptopService(t)
	both := func() { // each has another address after a rollout, which its name leads to a moment later
		t.Helper()
		for _, pod := range []string{"ledger-0", "ledger-1"} {
			settled(t, "http://"+pod+".ledger.shop:8080/")
		}
	}
	both()
	require.Equal(t, "cluster", edition(t, "http://ledger-0.ledger.shop:8080/"))
	detour(t, "intercept", "ledger", "--port", port)
	both()
	require.Equal(t, "laptop", edition(t, "http://ledger-0.ledger.shop:8080/"))
	require.Equal(t, "laptop", edition(t, "http://ledger-1.ledger.shop:8080/"))
	detour(t, "leave", "ledger")
	require.Equal(t, "cluster", edition(t, "http://ledger-0.ledger.shop:8080/"))
}

// A daemon that is killed costs the team nothing, and the next command puts the laptop back.
func TestKilledDaemon(t *testing.T) {
	before, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	detour(t, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = command("detour", "quit") }) // when it fails before the daemon is killed
	port := laptopService(t)
	detour(t, "intercept", "catalog", "--port", port)
	w := watchWith(t, outside(t, "catalog"), "alice") // whoever asks: it is intercepted as a whole
	pid := daemonPID(t)
	require.Eventually(t, func() bool { return inCluster() == "laptop" }, patience, 100*time.Millisecond)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	fault := time.Now()
	time.Sleep(3 * time.Second)
	w.check(t, fault, 2*time.Second)
	require.Equal(t, "cluster", inCluster())
	require.Equal(t, "not connected", detour(t, "status"))
	after, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	_, err = net.InterfaceByName("detour0")
	require.Error(t, err)
}

func daemonPID(t *testing.T) int {
	t.Helper()
	all := daemons(t)
	require.Len(t, all, 1)
	return all[0]
}

// daemons are this suite's; others may run on the machine.
func daemons(t *testing.T) (pids []int) {
	t.Helper()
	out, _ := command("pgrep", "-f", "detour daemon$")
	for _, word := range strings.Fields(out) {
		environment, err := os.ReadFile(filepath.Join("/proc", word, "environ"))
		if err == nil && slices.Contains(strings.Split(string(environment), "\x00"), "DETOUR_RUN_DIR="+os.Getenv("DETOUR_RUN_DIR")) {
			pid, err := strconv.Atoi(word)
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// A deleted manager comes back and so does the session, without any command.
func TestDeletedManager(t *testing.T) {
	connected(t)
	port := laptopService(t)
	detour(t, "intercept", "catalog", "--port", port)
	kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager", "--wait=true")
	require.Eventually(t, func() bool {
		page, err := get(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}, frontend)
		return err == nil && editionOf(page) == "laptop"
	}, 90*time.Second, 300*time.Millisecond)
	detour(t, "leave", "catalog")
	require.Equal(t, "cluster", edition(t, frontend))
}

func TestBadInputIsOneSentence(t *testing.T) {
	connected(t)
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"unknown service":   {[]string{"intercept", "katalog", "--port", "18080"}, "service katalog does not exist in namespace shop"},
		"unknown port":      {[]string{"intercept", "catalog", "--port", "18080:99"}, "service catalog has no port 99: it has 80 (http)"},
		"no local port":     {[]string{"intercept", "catalog", "--port", "http"}, `--port "http" is not LOCAL[:REMOTE]`},
		"not intercepted":   {[]string{"leave", "catalog"}, "there is no intercept to leave"},
		"other namespace":   {[]string{"connect", "-n", "default"}, "already connected to namespace shop"},
		"unknown output":    {[]string{"status", "-o", "xml"}, "use json or yaml"},
		"unreachable":       {[]string{"list", "--server", "https://127.0.0.1:1"}, "cannot be reached"},
		"wrong credentials": {[]string{"list", "--token", "expired", "--kubeconfig", "/dev/null", "--server", "https://172.30.0.1:6443", "--insecure-skip-tls-verify"}, "credentials"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := command("detour", c.args...)
			require.Error(t, err, out)
			lines := strings.Split(out, "\n")
			require.Contains(t, lines[len(lines)-1], c.says)
		})
	}
	require.NotContains(t, kubectl(t, "get", "intercepts", "-A"), "katalog", "a refused intercept leaves nothing behind")
}

// laptopCounts is a process on the laptop that takes any bytes, and says what they were when the other end has sent all.
func laptopCounts(t *testing.T, port string) {
	t.Helper()
	l, _ := laptopListener(t, port)
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				hash := sha256.New()
				if _, err := io.Copy(hash, c); err == nil {
					_, _ = fmt.Fprintf(c, "the laptop got %x", hash.Sum(nil))
				}
			})
		}
	})
}

// Of a service with two ports one is intercepted; the other goes on as before.
func TestOneOfTwoPorts(t *testing.T) {
	other(t)
	t.Cleanup(func() { // the tests that follow have it without an agent, as it was
		kubectl(t, "-n", "other", "patch", "deployment", "target", "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"detour.dev/agent":null}}}}}`)
	})
	detour(t, "connect", "-n", "other")
	t.Cleanup(func() { detour(t, "quit") })
	port := laptopService(t)
	first := freePorts(t, 2)
	bulk, next := strconv.Itoa(first), strconv.Itoa(first+1)
	ip := kubectl(t, "-n", "other", "get", "service", "target", "-o", "jsonpath={.spec.clusterIP}")
	require.Contains(t, refused(t, "intercept", "target", "--port", port), "has several ports, 80 (http), 9000 (bulk), 9001 (next): say which")

	out := detour(t, "intercept", "target", "--port", bulk+":bulk")
	require.Contains(t, out, "warning: nothing listens on local port "+bulk+" yet")
	out = detour(t, "intercept", "target", "--port", port+":http")
	require.NotContains(t, out, "warning")
	require.Equal(t, "laptop", edition(t, "http://"+ip+"/"))
	detour(t, "leave", "target", "--port", "9000")
	require.Equal(t, "laptop", edition(t, "http://"+ip+"/"))
	c, err := net.Dial("tcp", ip+":9000")
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("u12345"))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	count, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, []byte{0, 0, 0, 0, 0, 0, 0, 5}, count, "the cluster's pod counted")
	detour(t, "leave", "target")

	t.Run("both at once, or none", func(t *testing.T) {
		require.Contains(t, refused(t, "intercept", "target", "--port", port+":http", "--port", bulk+":nothing"), "has no port nothing")
		require.Contains(t, detour(t, "status"), "intercepts  none")
		laptopCounts(t, bulk)
		counted := func() {
			t.Helper()
			sent := make([]byte, 3<<20)
			_, _ = rand.NewChaCha8([32]byte{}).Read(sent)
			c, err := net.Dial("tcp", ip+":9000")
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
			_, err = c.Write(sent)
			require.NoError(t, err)
			require.NoError(t, c.(*net.TCPConn).CloseWrite())
			said, err := io.ReadAll(c)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("the laptop got %x", sha256.Sum256(sent)), string(said))
		}
		detour(t, "intercept", "target", "--port", port+":http", "--port", bulk+":bulk")
		require.Equal(t, "laptop", edition(t, "http://"+ip+"/"))
		counted()
		detour(t, "leave", "target")
		require.Contains(t, detour(t, "status"), "intercepts  none")

		laptopServer(t, next, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"edition":"laptop"}`) })
		detour(t, "intercept", "target", "--port", bulk+"-"+next+":9000-9001")
		counted()
		require.Equal(t, "laptop", edition(t, "http://"+ip+":9001/"))
		detour(t, "leave", "target")
		require.Contains(t, detour(t, "status"), "intercepts  none")
	})
}

// An intercept with a time to live ends by itself, also for the laptop.
func TestTimeToLive(t *testing.T) {
	connected(t)
	port := laptopService(t)
	detour(t, "intercept", "catalog", "--port", port) // for the agent to be there
	detour(t, "leave", "catalog")
	detour(t, "intercept", "catalog", "--port", port, "--ttl", "10s", "--on-failure", "error")
	require.Equal(t, "laptop", inCluster())
	require.Eventually(t, func() bool { return inCluster() == "cluster" }, 30*time.Second, 200*time.Millisecond)
	require.Eventually(t, func() bool { return strings.Contains(detour(t, "status"), "intercepts  none") }, 30*time.Second, 200*time.Millisecond)
	require.NotContains(t, kubectl(t, "get", "intercepts", "-A"), "catalog")
}

// The namespace's own laptop holds the port: a second laptop is told who does.
func TestSecondLaptop(t *testing.T) {
	second, err := laptop.New(t.Context(), 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, second.Close()) })
	config, err := second.Kubeconfig("")
	require.NoError(t, err)
	on := func(args ...string) (string, error) {
		out, err := second.Command(t.Context(), "detour", append(args, "--kubeconfig", config)...).CombinedOutput()
		return string(out), err
	}

	connected(t)
	port := laptopService(t)
	detour(t, "intercept", "catalog", "--port", port)
	out, err := on("intercept", "catalog", "--port", port, "-n", "shop")
	require.Error(t, err, out)
	require.Contains(t, out, "is intercepted by")
	require.Equal(t, "laptop", inCluster())

	page, err := second.Command(t.Context(), "curl", "-sS", "--max-time", "10", "http://catalog.shop/").CombinedOutput()
	require.NoError(t, err, string(page))
	require.Equal(t, "laptop", editionOf(string(page)), "a second laptop sees what everybody sees")
	out, err = on("quit")
	require.NoError(t, err, out)
	require.Equal(t, "laptop", inCluster())
	detour(t, "leave", "catalog")
}

// A laptop that slept so long that its session was given up comes back with all it had, without any command: also with the port that
// somebody else has taken meanwhile, as soon as it is free again. A session that
// somebody deletes while the laptop is there ends, and the laptop is put back.
func TestDeletedSession(t *testing.T) {
	parts := func() string {
		return kubectl(t, "-n", "detour-system", "get", "services,roles", "-o", "jsonpath={.items[*].metadata.name} {.items[*].rules[*].resources}")
	}
	detour(t, "install", "--image", managerImage, "--set", "sessionTTL=8s", "--set", "udp.enabled=false,attach=false,connect.portForward=false")
	t.Cleanup(func() {
		detour(t, "install", "--image", managerImage, "--set", "sessionTTL=10m", "--set", "udp.enabled=true,attach=true,connect.portForward=true")
		require.Contains(t, parts(), "traffic-manager-udp")
		require.Contains(t, parts(), "pods/portforward")
	})
	connected(t)
	// What this installation is without.
	require.NotContains(t, parts(), "traffic-manager-udp")
	require.NotContains(t, parts(), "pods/portforward")
	require.Contains(t, detour(t, "status"), "up, api-server-upgrade")
	withoutAgent(t, "stock")
	require.Contains(t, refused(t, "intercept", "stock", "--port", "18080", "--attach"), "may not attach agents to running pods here, which the chart's value attach turns off: leave out --attach")
	port := laptopService(t)
	detour(t, "intercept", "catalog", "--port", port)
	session := func() string { return kubectl(t, "-n", "shop", "get", "sessions", "-o", "name") }
	first := session()
	without, stillReaches := rootlessCommand(t)

	pid := daemonPID(t)
	for _, p := range []int{pid, without.daemonPID()} {
		require.NoError(t, syscall.Kill(p, syscall.SIGSTOP))
		t.Cleanup(func() { _ = syscall.Kill(p, syscall.SIGCONT) })
	}
	require.Eventually(t, func() bool { return session() == "" }, 60*time.Second, time.Second, "the sessions are given up")
	require.Equal(t, "cluster", inCluster())

	require.NoError(t, syscall.Kill(without.daemonPID(), syscall.SIGCONT))
	stillReaches()
	without.detour("quit")
	require.Empty(t, session())
	second := newIdleDeveloper(t, 0) // on which nothing listens
	second.detour("intercept", "catalog", "--port", port, "-n", "shop")
	other := session()
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	require.Eventually(t, func() bool {
		out, err := command("detour", "status")
		return err == nil && strings.Contains(out, "Refused") && strings.Contains(out, "is intercepted by")
	}, 60*time.Second, 200*time.Millisecond, "its status says who has the port")
	second.detour("quit")
	require.Eventually(t, func() bool { return inCluster() == "laptop" }, 60*time.Second, 200*time.Millisecond, "the intercept is back")
	require.NotContains(t, []string{first, other}, session())

	kubectl(t, "-n", "shop", "delete", session())
	require.Eventually(t, func() bool { return strings.Contains(detour(t, "status"), "the session was deleted in the cluster") }, 20*time.Second, time.Second)
	require.Equal(t, "cluster", inCluster())
	_, err := net.InterfaceByName("detour0")
	require.Error(t, err)
}
