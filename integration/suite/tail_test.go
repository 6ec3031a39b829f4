package suite

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/detour-dev/detour/integration/suite/kit"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

// tail is a running `detour tail -o json`.
type tail struct {
	t   *testing.T
	cmd *exec.Cmd

	mu    sync.Mutex
	lines []tailLine
	done  chan struct{}
}

type tailLine struct {
	Method, Path, ServedBy, Laptop, Why, GRPCStatus string
	Status                                          int
	raw                                             string
}

func startTail(t *testing.T, service string) *tail {
	t.Helper()
	tail := &tail{t: t, cmd: exec.Command("detour", "tail", service, "-o", "json"), done: make(chan struct{})}
	out, err := tail.cmd.StdoutPipe()
	require.NoError(t, err)
	complaints, err := tail.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, tail.cmd.Start())
	note, err := bufio.NewReader(complaints).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, note, "requests to service "+service)
	go func() { // ends with the command
		defer close(tail.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			line := tailLine{raw: lines.Text()}
			if json.Unmarshal(lines.Bytes(), &line) == nil {
				tail.mu.Lock()
				tail.lines = append(tail.lines, line)
				tail.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { _ = tail.cmd.Process.Kill(); <-tail.done })
	return tail
}

// until calls do again and again until a line matches, and returns that line.
func (l *tail) until(do func(), like func(tailLine) bool) (found tailLine) {
	l.t.Helper()
	kit.Eventually(l.t, func() bool {
		do()
		time.Sleep(300 * time.Millisecond) // agents send their reports in batches
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, line := range l.lines {
			if like(line) {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

// stop is Ctrl-C.
func (l *tail) stop() {
	l.t.Helper()
	require.NoError(l.t, l.cmd.Process.Signal(syscall.SIGINT))
	<-l.done
	require.NoError(l.t, l.cmd.Wait())
}

// `detour tail` shows who answered which request and why, and never the value of a header or of a
// query.
func TestTail(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog, kit.Frontend), kit.Uses(kit.Machine))
	alice := kit.NewCatalogLaptop(t, "alice")
	kit.Connect(t)
	kit.RemoveAgent(t, "frontend")
	require.Contains(t, kit.DetourFails(t, "tail", "frontend"), "no pod of service frontend has the traffic-agent")
	require.Contains(t, kit.DetourFails(t, "tail", "nothing"), "service nothing does not exist")
	require.Contains(t, kit.DetourFails(t, "tail", "catalog", "--port", "99"), "has no port 99")

	alice.Detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	tail := startTail(t, "catalog")
	ask := func(who string) func() {
		return func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://catalog.shop/?token=secret", nil)
			require.NoError(t, err)
			r.Header.Set("x-dev", who)
			answer, err := kit.NewConnections().Do(r)
			require.NoError(t, err)
			_ = answer.Body.Close()
		}
	}
	line := tail.until(ask("alice"), func(l tailLine) bool { return l.ServedBy == "laptop" })
	require.Equal(t, "GET", line.Method)
	require.Equal(t, "/", line.Path)
	require.Equal(t, http.StatusOK, line.Status)
	require.Contains(t, line.Why, "header x-dev matches ")
	require.Equal(t, "header x-dev matches "+line.Laptop+"'s intercept", line.Why)
	tail.until(ask("none"), func(l tailLine) bool {
		return l.ServedBy == "cluster" && l.Path == "/" && l.Why == "no intercept matched"
	})
	require.NoError(t, alice.Catalog.Process.Kill())
	_ = alice.Catalog.Wait() // until it has exited it may still accept a request
	tail.until(ask("alice"), func(l tailLine) bool {
		return l.ServedBy == "cluster" && l.Why == line.Laptop+"'s laptop is unreachable: fell back"
	})
	tail.mu.Lock()
	for _, l := range tail.lines {
		require.NotContains(t, l.raw, "secret")
	}
	tail.mu.Unlock()
	tail.stop()

	t.Run("only the daemon is told", func(t *testing.T) {
		var s struct{ Subnets []netip.Prefix }
		require.NoError(t, json.Unmarshal([]byte(kit.Detour(t, "status", "-o", "json")), &s))
		var hub netip.Addr
		for _, p := range s.Subnets {
			if p.IsSingleIP() && p.Addr().Is4() {
				hub = p.Addr()
			}
		}
		conn, err := grpc.NewClient("passthrough:///"+netip.AddrPortFrom(hub, 7475).String(),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		stream, err := tailv1.NewTailServiceClient(conn).Tail(ctx, &tailv1.TailRequest{Service: "catalog"})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.Equal(t, codes.PermissionDenied, status.Code(err), err)
	})
	t.Run("for people", func(t *testing.T) {
		cmd := exec.Command("detour", "tail", "catalog", "--port", "http")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		first := make(chan string, 1)
		go func() { // ends with the command
			line, _ := bufio.NewReader(out).ReadString('\n')
			first <- line
		}()
		kit.Eventually(t, func() bool { ask("none")(); return len(first) > 0 })
		require.Regexp(t, `^\d\d:\d\d:\d\d\.\d{3} GET     /  +200  +\S+s  cluster  no intercept matched\n$`, <-first)
		require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
		require.NoError(t, cmd.Wait())
	})
}
