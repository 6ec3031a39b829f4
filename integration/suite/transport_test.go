package suite

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
	"github.com/detour-dev/detour/integration/cluster/badnet"
)

// patience is for what must happen, however busy the machine is.
const patience = 30 * time.Second

// roaming is a laptop whose paths to the cluster can be cut: the API server is behind a relay, UDP behind packet filters.
type roaming struct {
	*developerLaptop
	api *badnet.Relay
}

func newRoaming(t *testing.T) *roaming {
	t.Helper()
	r := &roaming{developerLaptop: newGuest(t, 3, func() {})}
	c, err := cluster.Default()
	require.NoError(t, err)
	require.NoError(t, r.Do(func() (err error) {
		r.api, err = badnet.Listen(context.Background(), "127.0.0.1:0", strings.TrimPrefix(c.Server(), "https://"))
		return err
	}))
	t.Cleanup(r.api.Close)
	r.config, err = r.Kubeconfig("https://" + r.api.Addr())
	require.NoError(t, err)
	// Before the relay closes, which the laptop needs to say goodbye.
	t.Cleanup(func() { r.api.Stall(false); _, _ = r.try("quit") })
	return r
}

func (r *roaming) run(args ...string) {
	r.t.Helper()
	out, err := r.Command(r.t.Context(), args[0], args[1:]...).CombinedOutput()
	require.NoError(r.t, err, "%v: %s", args, out)
}

// blockUDP drops all datagrams between the laptop and the cluster, or lets them pass again.
func (r *roaming) blockUDP(blocked bool) {
	r.t.Helper()
	if !blocked {
		r.run("nft", "delete", "table", "inet", "blocked")
		return
	}
	r.run("nft", "add table inet blocked; add chain inet blocked out { type filter hook output priority 0; }; add rule inet blocked out oifname eth0 meta l4proto udp drop;"+
		"add chain inet blocked in { type filter hook input priority 0; }; add rule inet blocked in iifname eth0 meta l4proto udp drop")
}

type statusOutput struct {
	Transport, TransportAddress, TransportSinceUnix string
	TunnelUp                                        bool
}

func (r *roaming) status() (s statusOutput) {
	r.t.Helper()
	require.NoError(r.t, json.Unmarshal([]byte(r.detour("status", "-o", "json")), &s))
	return s
}

func (r *roaming) becomes(transport string) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.status().Transport == transport }, patience, 100*time.Millisecond, "the path is to be %s", transport)
}

// dial opens a connection to port 80 of an address in the cluster.
func (r *roaming) dial(address string) *bufio.ReadWriter {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	c, err := r.DialContext(ctx, "tcp", net.JoinHostPort(address, "80"))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = c.Close() })
	return bufio.NewReadWriter(bufio.NewReader(&patient{c, 2*patience + outage(r.t)}), bufio.NewWriter(c))
}

// patient gives up reading at last.
type patient struct {
	net.Conn
	after time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.SetReadDeadline(time.Now().Add(p.after))
	return p.Conn.Read(b)
}

// request asks for a page on a connection that stays open and returns the answer's body.
func request(t *testing.T, c *bufio.ReadWriter, path string) io.ReadCloser {
	t.Helper()
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: target\r\n\r\n", path)
	require.NoError(t, err)
	require.NoError(t, c.Flush())
	answer, err := http.ReadResponse(c.Reader, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode)
	return answer.Body
}

func answers(t *testing.T, c *bufio.ReadWriter) {
	t.Helper()
	body := request(t, c, "/")
	defer body.Close()
	page, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Contains(t, string(page), "a small answer")
}

// paced downloads noise without an end, some ten megabytes a second, and compares what comes with what was sent.
type paced struct {
	received atomic.Int64
	ended    chan error
}

func (r *roaming) download(address string) *paced {
	r.t.Helper()
	body := request(r.t, r.dial(address), "/noise/"+strconv.FormatInt(1<<50, 10))
	p := &paced{ended: make(chan error, 1)}
	ctx := r.t.Context()
	go func() {
		noise := rand.NewChaCha8([32]byte{})
		got, want := make([]byte, 128<<10), make([]byte, 128<<10)
		for ctx.Err() == nil {
			n, err := io.ReadFull(body, got)
			_, _ = noise.Read(want[:n])
			p.received.Add(int64(n))
			if err == nil && !bytes.Equal(got, want) {
				err = errors.New("what came is not what was sent")
			}
			if err != nil {
				p.ended <- fmt.Errorf("after %d bytes: %w", p.received.Load(), err)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return p
}

// goesOn waits until more has come than can have been on its way.
func (p *paced) goesOn(t *testing.T) {
	t.Helper()
	before := p.received.Load()
	require.Eventually(t, func() bool {
		select {
		case err := <-p.ended:
			require.NoError(t, err, "the download ended")
		default:
		}
		return p.received.Load() > before+10<<20
	}, 2*patience, 50*time.Millisecond, "the download goes on")
}

// outage is how long nothing at all passes. DETOUR_OUTAGE makes it longer than there is time for in each run.
func outage(t *testing.T) time.Duration {
	if text := os.Getenv("DETOUR_OUTAGE"); text != "" {
		d, err := time.ParseDuration(text)
		require.NoError(t, err)
		return d
	}
	return 8 * time.Second // longer than it takes the traffic-manager to count a laptop as gone
}

// A download and an idle connection survive whatever becomes of the paths between laptop and cluster.
func TestConnectionsSurviveEveryPath(t *testing.T) {
	t.Parallel()
	other(t)
	target := kubectl(t, "-n", "other", "get", "service", "target", "-o", "jsonpath={.spec.clusterIP}")
	r := newRoaming(t)
	r.blockUDP(true)
	r.detour("connect", "-n", "other")
	require.Equal(t, "api-server-upgrade", r.status().Transport)

	idle, asking := r.dial(target), r.dial(target)
	answers(t, idle)
	download := r.download(target)
	step := func(name string) {
		t.Helper()
		start := time.Now()
		download.goesOn(t)
		answers(t, asking)
		t.Logf("%s: all goes on, after %s", name, time.Since(start).Round(10*time.Millisecond))
	}
	step("upgrade")

	r.blockUDP(false)
	r.becomes("direct-udp")
	require.Contains(t, r.detour("status"), "up, direct-udp to 172.30.0.")
	require.NotEqual(t, "0", r.status().TransportSinceUnix)
	step("direct")

	r.blockUDP(true)
	r.becomes("api-server-upgrade")
	step("UDP is blocked")
	r.api.Cut()
	step("the connections to the API server are cut, and are the path")
	r.blockUDP(false)
	r.becomes("direct-udp")
	step("UDP is back")

	r.api.Cut()
	step("the connection to the API server is cut")

	nothing := outage(t)
	r.api.Stall(true)
	r.blockUDP(true)
	time.Sleep(nothing) // it is the time that is tried
	r.blockUDP(false)
	r.api.Stall(false)
	step(fmt.Sprintf("nothing passed for %s", nothing))

	r.becomes("direct-udp")
	roamed := "172.30.0.190"
	r.run("ip", "address", "add", roamed+"/32", "dev", "eth0")
	for _, route := range strings.Split(strings.TrimSpace(r.output("ip", "-4", "route", "show", "dev", "eth0")), "\n") {
		r.run("ip", "route", "replace", strings.Fields(route)[0], "dev", "eth0", "src", roamed)
	}
	r.run("ip", "address", "del", r.Address().String()+"/32", "dev", "eth0")
	step("another source address")

	answers(t, idle)
	require.Equal(t, "True", kubectl(t, "-n", "other", "get", "sessions", "-o", `jsonpath={.items[0].status.conditions[?(@.type=="Ready")].status}`))
}

func (r *roaming) output(args ...string) string {
	r.t.Helper()
	out, err := r.Command(r.t.Context(), args[0], args[1:]...).Output()
	require.NoError(r.t, err, "%v", args)
	return string(out)
}

// managerProcess is the traffic-manager's process on this machine, on which the pods run too.
func managerProcess(t *testing.T) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range all {
		if line, err := os.ReadFile(path); err == nil && bytes.HasPrefix(line, []byte("/traffic\x00manager\x00")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
			return pid
		}
	}
	t.Fatal("no traffic-manager runs")
	return 0
}

// A traffic-manager that restarts resets what went through it, also what says nothing, and the laptop goes on by itself.
func TestManagerRestart(t *testing.T) {
	other(t)
	target := kubectl(t, "-n", "other", "get", "service", "target", "-o", "jsonpath={.spec.clusterIP}")
	r := newRoaming(t)
	r.detour("connect", "-n", "other")
	r.becomes("direct-udp")
	for _, way := range []struct {
		name    string
		restart func()
	}{
		{"a process that is killed", func() { require.NoError(t, syscall.Kill(managerProcess(t), syscall.SIGKILL)) }},
		{"a new pod", func() { kubectl(t, "-n", "detour-system", "rollout", "restart", "deployment", "traffic-manager") }},
	} {
		idle := r.dial(target)
		answers(t, idle)
		start := time.Now()
		way.restart()
		_, err := idle.ReadByte()
		require.ErrorIs(t, err, syscall.ECONNRESET, "%s: what was open is reset", way.name)
		t.Logf("%s: what was open is reset after %s", way.name, time.Since(start).Round(10*time.Millisecond))
		require.Eventually(t, func() bool { return r.reaches(target) }, patience, 50*time.Millisecond, "%s: what is new works", way.name)
		t.Logf("%s: what is new works after %s", way.name, time.Since(start).Round(10*time.Millisecond))
		require.True(t, r.status().TunnelUp)
	}
	r.becomes("direct-udp")
}

// reaches says whether a new connection is answered soon.
func (r *roaming) reaches(address string) bool {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
	defer cancel()
	c, err := r.DialContext(ctx, "tcp", net.JoinHostPort(address, "80"))
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, err = fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n")
	page, rerr := io.ReadAll(c)
	return err == nil && rerr == nil && bytes.Contains(page, []byte("a small answer"))
}

// Where the API server cannot reach pods the tunnel goes through the kubelet, until the better way works.
func TestPortForward(t *testing.T) {
	other(t)
	target := kubectl(t, "-n", "other", "get", "service", "target", "-o", "jsonpath={.spec.clusterIP}")
	pod := kubectl(t, "-n", "detour-system", "get", "pod", "-l", "app=traffic-manager", "-o", "jsonpath={.items[0].status.podIP}")
	r := newRoaming(t)
	r.blockUDP(true)
	r.detour("connect", "-n", "other", "--transport", "portforward")
	require.Equal(t, "port-forward", r.status().Transport)
	answers(t, r.dial(target))
	require.Contains(t, r.refused("connect", "-n", "other", "--transport", "upgrade"), "detour quit")
	r.detour("quit")

	apiServer := func(rules string) {
		t.Helper()
		out, err := exec.Command("nsenter", "--net=/run/netns/detour-cp", "--", "nft", rules).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	apiServer("add table inet unreachable; add chain inet unreachable out { type filter hook output priority 0; }; add rule inet unreachable out ip daddr " + pod + " tcp dport 8081 drop")
	opened := false
	open := func() {
		if !opened {
			opened = true
			apiServer("delete table inet unreachable")
		}
	}
	t.Cleanup(open)
	r.detour("connect", "-n", "other")
	require.Equal(t, "port-forward", r.status().Transport)
	c := r.dial(target)
	answers(t, c)
	open()
	r.becomes("api-server-upgrade")
	answers(t, c)
}

func (r *roaming) refused(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	require.Error(r.t, err, out)
	return out
}
