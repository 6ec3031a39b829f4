// Package suite proves detour against a real Kubernetes: real pods, real redirects, a real TUN. integration/run.sh prepares it.
package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const managerImage = "detour.local/traffic:dev"

func TestMain(m *testing.M) {
	if os.Getenv("DETOUR_ROOT") == "" {
		fmt.Fprintln(os.Stderr, "the suite needs a cluster: run make test-integration")
		os.Exit(1)
	}
	code := 1
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "preparing the cluster:", err)
	} else {
		code = m.Run()
	}
	_, _ = command("detour", "quit")
	_, _ = command("detour", "uninstall")
	_, _ = command("kubectl", "delete", "namespace", "shop", "other", "--ignore-not-found")
	os.Exit(code)
}

func prepare() error {
	for _, c := range [][]string{
		{"kubectl", "apply", "-f", filepath.Join(os.Getenv("DETOUR_ROOT"), "examples/shop/manifests/shop.yaml")},
		{"kubectl", "-n", "shop", "rollout", "status", "deployment/frontend", "--timeout=120s"},
		{"kubectl", "-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s"},
		{"kubectl", "-n", "shop", "rollout", "status", "deployment/stock", "--timeout=120s"},
		{"detour", "install", "--image", managerImage},
	} {
		if out, err := command(c[0], c[1:]...); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
		}
	}
	return nil
}

// command runs a program to its end and returns all it printed. One that hangs is interrupted as by a person, so that it says what it waits for and leaves
// nothing that is in the way of other tests.
func command(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

func detour(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command("detour", args...)
	require.NoError(t, err, "detour %s: %s", strings.Join(args, " "), out)
	return out
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command("kubectl", args...)
	require.NoError(t, err, "kubectl %s: %s", strings.Join(args, " "), out)
	return out
}

// connections counts the tests that need the machine's own connection: some run side by side.
var connections struct {
	sync.Mutex
	n int
}

// connected connects to the shop and disconnects at the end of the last test that needs it. The first begins without what a test that failed may
// have left: a daemon that is connected elsewhere, or whose intercepts are in the way.
func connected(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		connections.Lock()
		defer connections.Unlock()
		if connections.n--; connections.n == 0 {
			detour(t, "quit")
		}
	})
	connections.Lock()
	if connections.n == 0 {
		_, _ = command("detour", "quit")
	}
	connections.n++
	out, err := command("detour", "connect", "-n", "shop")
	connections.Unlock()
	require.NoError(t, err, out)
	// Go's resolver reads /etc/resolv.conf again after 5 s at the earliest.
	require.Eventually(t, func() bool { _, err := net.LookupHost("catalog.shop"); return err == nil }, patience, 100*time.Millisecond)
}

// ownSession is the machine's own, if it is connected.
func ownSession() string {
	var status struct{ Session string }
	out, _ := command("detour", "status", "-o", "json")
	_ = json.Unmarshal([]byte(out), &status)
	return status.Session
}

// withoutAgent rolls a deployment of the shop back to pods that never saw detour.
func withoutAgent(t *testing.T, deployment string) {
	t.Helper()
	kubectl(t, "-n", "shop", "patch", "deployment", deployment, "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"detour.dev/agent":null}}}}}`)
	kubectl(t, "-n", "shop", "rollout", "status", "deployment", deployment, "--timeout=120s")
	require.Eventually(t, func() bool {
		return !strings.Contains(kubectl(t, "-n", "shop", "get", "pods", "-l", "app="+deployment, "-o", "jsonpath={.items[*].spec.initContainers[*].name}"), "agent")
	}, 60*time.Second, 500*time.Millisecond, "the old pods end")
}

// laptopService serves a page that names the laptop and returns its port, which is a free one of this machine.
func laptopService(t *testing.T) (port string) {
	t.Helper()
	return laptopServer(t, "0", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"edition":"laptop"}`) })
}

// laptopServer serves HTTP on a port of 127.0.0.1, or on a free one for port 0, and returns the port.
func laptopServer(t *testing.T, port string, handler http.HandlerFunc) string {
	t.Helper()
	l, port := laptopListener(t, port)
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: handler}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { _ = s.Close(); serving.Wait() })
	return port
}

// laptopListener listens on a port of 127.0.0.1, or on a free one for port 0, and returns the port. It fails the test when another
// process has the port.
func laptopListener(t *testing.T, port string) (net.Listener, string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	require.NoError(t, err, "a test needs port %s of this machine", port)
	t.Cleanup(func() { _ = l.Close() })
	_, port, err = net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return l, port
}

// freePorts returns the first of n successive ports of 127.0.0.1 on which nothing listens.
func freePorts(t *testing.T, n int) (first int) {
	t.Helper()
	for range 100 {
		l, port := laptopListener(t, "0")
		all := []net.Listener{l}
		first, err := strconv.Atoi(port)
		require.NoError(t, err)
		for next := first + 1; err == nil && next < first+n; next++ {
			if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", next)); err == nil {
				all = append(all, l)
			}
		}
		for _, l := range all {
			_ = l.Close()
		}
		if err == nil {
			return first
		}
	}
	require.Fail(t, "no free ports", "%d successive ones", n)
	return 0
}

// traced notes how far a request comes, for the message of its failure.
func traced(ctx context.Context) (_ context.Context, reached func() string) {
	var mu sync.Mutex
	began, text := time.Now(), "nothing"
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		text += fmt.Sprintf(", after %s ", time.Since(began).Round(time.Millisecond)) + fmt.Sprintf(format, args...)
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSDone:              func(i httptrace.DNSDoneInfo) { note("the name: %v", i.Addrs) },
		ConnectStart:         func(_, to string) { note("the dial of %s", to) },
		GotConn:              func(i httptrace.GotConnInfo) { note("a connection from %s, reused: %t", i.Conn.LocalAddr(), i.Reused) },
		WroteRequest:         func(httptrace.WroteRequestInfo) { note("the request written") },
		GotFirstResponseByte: func() { note("an answer") },
	}), func() string { mu.Lock(); defer mu.Unlock(); return text }
}

// get returns a page's text; anything but 200 is an error.
func get(c *http.Client, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx, reached := traced(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", fmt.Errorf("%w (reached %s)", err, reached())
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, b.String())
	}
	return b.String(), nil
}

// inCluster says which catalog answers the frontend, asked by way of the API server and not of a tunnel.
func inCluster() string { return editionOf(inClusterPage()) }

func inClusterPage() string {
	out, _ := command("kubectl", "get", "--raw", "/api/v1/namespaces/shop/services/frontend:http/proxy/")
	return out
}

// edition says which catalog answered.
func edition(t *testing.T, url string) string {
	t.Helper()
	page, err := get(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, url)
	require.NoError(t, err)
	return editionOf(page)
}

func editionOf(page string) string {
	if strings.Contains(page, `"edition":"laptop"`) {
		return "laptop"
	}
	if strings.Contains(page, `"edition":"cluster"`) {
		return "cluster"
	}
	return page
}

// settled waits until the nodes know a service's pods of the moment, where a pod is new or has nobody beside it: Kubernetes tells them later than
// the traffic-manager and the laptop. Ten new connections in a row have to be answered, by whomever.
func settled(t *testing.T, url string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	require.Eventually(t, func() bool {
		for range 10 {
			if _, err := get(client, url); err != nil {
				return false
			}
		}
		return true
	}, patience, 50*time.Millisecond, "the nodes know the pods of %s", url)
}

// load asks for url again and again until stop is called, which returns how many requests were made and the failures.
func load(t *testing.T, url string, keepAlive bool) (stop func() (int, []error)) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keepAlive}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var all sync.WaitGroup
	var count atomic.Int64
	var mu sync.Mutex
	var failures []error
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				if _, err := get(client, url); err != nil {
					mu.Lock()
					failures = append(failures, fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
					mu.Unlock()
				}
				count.Add(1)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	return func() (int, []error) { cancel(); all.Wait(); return int(count.Load()), failures }
}
