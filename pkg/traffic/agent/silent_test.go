package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/traffic/agent/replay"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// network is the network between an agent and a laptop's relay. While it is stopped, nothing is
// lost and nothing arrives, as with a laptop that sleeps.
type network struct {
	address string
	mu      sync.RWMutex // held while it is stopped
	stopped bool
	conns   sync.Map
}

// cut ends what is open.
func (w *network) cut() { w.conns.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true }) }

func (w *network) stop() { w.mu.Lock(); w.stopped = true }

func (w *network) goOn() {
	if w.stopped {
		w.stopped = false
		w.mu.Unlock()
	}
}

func newNetwork(t *testing.T, to string) *network {
	w := new(network)
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		_ = c.SetDeadline(time.Time{})
		there, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		w.conns.Store(c, nil)
		var both sync.WaitGroup
		for _, d := range [][2]net.Conn{{c, there}, {there, c}} {
			both.Go(func() {
				defer d[1].Close()
				for b := make([]byte, 32<<10); ; {
					n, err := d[0].Read(b)
					w.mu.RLock()
					_, _ = d[1].Write(b[:n])
					w.mu.RUnlock()
					if err != nil {
						return
					}
				}
			})
		}
		both.Wait()
	})
	t.Cleanup(w.goOn)
	w.address = net.JoinHostPort("127.0.0.1", fmt.Sprint(port))
	return w
}

// silent returns a pod whose port alice intercepts for herself, from a laptop that can fall
// silent.
func silent(t *testing.T, laptop http.Handler) (*pod, *network, *agentv1.Intercept, *atomic.Int32) {
	t.Helper()
	var appRequests atomic.Int32
	serveApp := handler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		appRequests.Add(1)
		says("app").ServeHTTP(w, r)
	}))
	m := newLaptop(t, ok, handler(t, laptop))
	w := newNetwork(t, m.address)
	p := newPod(t, "127.0.0.1",
		serve(t, "127.0.0.1", func(c *net.TCPConn) { _ = c.SetDeadline(time.Time{}); serveApp(c) }), m.authority)
	alice := p.person("alice", w.address)
	p.table.Set([]*agentv1.Intercept{alice})
	return p, w, alice, &appRequests
}

// all returns the same intercept as a global one.
func all(i *agentv1.Intercept) *agentv1.Intercept {
	i = proto.Clone(i).(*agentv1.Intercept)
	i.Match = nil
	return i
}

// everywhere runs a test for each version of HTTP, and for HTTP/2 with a global intercept.
func everywhere(
	t *testing.T, test func(t *testing.T, transport *http.Transport, scope func(*agentv1.Intercept) *agentv1.Intercept),
) {
	one := func(i *agentv1.Intercept) *agentv1.Intercept { return i }
	for name, scope := range map[string]func(*agentv1.Intercept) *agentv1.Intercept{
		"HTTP/1.1": one, "HTTP/2": one, "HTTP/2, all of it": all,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			version, _, _ := strings.Cut(name, ",")
			test(t, transports(t)[version], scope)
		})
	}
}

var bodies = map[string]struct {
	method string
	body   func() io.Reader
	want   string
}{
	"GET": {method: http.MethodGet, body: func() io.Reader { return nil }},
	"POST": {
		method: http.MethodPost,
		body:   func() io.Reader { return strings.NewReader("order") },
		want:   "order",
	},
	"POST, chunked": {
		method: http.MethodPost,
		body:   func() io.Reader { return struct{ io.Reader }{strings.NewReader("order")} },
		want:   "order",
	},
}

// If a laptop falls silent with connections that are kept, the app answers what the laptop did
// not take, and then all requests at once.
func TestAppAnswersForASilentLaptop(t *testing.T) {
	everywhere(t, func(t *testing.T, transport *http.Transport, scope func(*agentv1.Intercept) *agentv1.Intercept) {
		p, way, alice, _ := silent(t, says("alice"))
		p.table.Set([]*agentv1.Intercept{scope(alice)})
		for range 4 { // kept connections
			require.Equal(t, "alice / ", text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)))
		}
		way.stop()
		var asking sync.WaitGroup
		for name, b := range bodies {
			asking.Go(func() {
				answer := p.ask(t, transport, b.method, "/", "alice", b.body())
				assert.Equal(t, "app / "+b.want, text(t, answer), name)
			})
		}
		asking.Wait()
		require.Equal(t, "app / ", text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)))
		way.goOn()
		require.Eventually(t, func() bool {
			answer := p.ask(t, transport, http.MethodPost, "/", "alice", strings.NewReader("more"))
			return text(t, answer) == "alice / more"
		},
			patience, 10*time.Millisecond, "taken up again")
	})
}

// A process at a breakpoint does not make a laptop silent. Nobody else gets a request that the
// laptop took before it fell silent, and the laptop may still answer it.
func TestDeliveredRequestsStay(t *testing.T) {
	everywhere(t, func(t *testing.T, transport *http.Transport, scope func(*agentv1.Intercept) *agentv1.Intercept) {
		standing := make(chan struct{})
		p, way, alice, appRequests := silent(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/breakpoint" {
				<-standing
			}
			says("alice").ServeHTTP(w, r)
		}))
		p.table.Set([]*agentv1.Intercept{scope(alice)})
		ask := func(path string) string {
			return text(t, p.ask(t, transport, http.MethodPost, path, "alice", strings.NewReader("order")))
		}
		answer := make(chan string, 1)
		go func() { answer <- ask("/breakpoint") }()
		time.Sleep(2 * time.Second) // longer than any laptop may be silent
		require.Equal(t, "alice / order", ask("/"))
		way.stop()
		require.Equal(t, "app / order", ask("/"))
		require.EqualValues(t, 1, appRequests.Load())
		close(standing)
		way.goOn()
		require.Equal(t, "alice /breakpoint order", <-answer)
		require.EqualValues(t, 1, appRequests.Load())
	})
}

// If the app must not answer, there is an error within the same time.
func TestSilentLaptopWithoutFallback(t *testing.T) {
	everywhere(t, func(t *testing.T, transport *http.Transport, scope func(*agentv1.Intercept) *agentv1.Intercept) {
		p, way, alice, appRequests := silent(t, says("alice"))
		alice = proto.Clone(scope(alice)).(*agentv1.Intercept)
		alice.ErrorOnFailure = true
		p.table.Set([]*agentv1.Intercept{alice})
		require.Equal(t, "alice / ", text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)))
		way.stop()
		for range 2 {
			answer := p.ask(t, transport, http.MethodPost, "/", "alice", strings.NewReader("order"))
			require.GreaterOrEqual(t, answer.StatusCode, 500)
		}
		require.Zero(t, appRequests.Load())
	})
}

// The same holds for new connections of a global intercept. What is not HTTP gets a reset.
func TestGlobalLaptopWithoutFallback(t *testing.T) {
	p, _, alice, appRequests := silent(t, says("alice"))
	alice = all(alice)
	alice.ErrorOnFailure, alice.RelayAddress = true, fmt.Sprintf("127.0.0.1:%d", nobody(t))
	p.table.Set([]*agentv1.Intercept{alice})
	for version, transport := range transports(t) {
		for range 2 {
			answer := p.ask(t, transport, http.MethodPost, "/", "", strings.NewReader("order"))
			require.Equal(t, http.StatusServiceUnavailable, answer.StatusCode, version)
			require.Contains(t, text(t, answer), "the laptop that intercepts this request is unreachable")
		}
	}
	c := p.dial(t)
	_, err := io.WriteString(c, "*1\r\n$4\r\nPING\r\n")
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.Zero(t, appRequests.Load())
}

// The app gets whole bodies: those that are still being sent, and those whose client waits until
// the answer has begun. A body that is too long to keep ends with an error.
func TestBodiesAreReplayed(t *testing.T) {
	everywhere(t, func(t *testing.T, transport *http.Transport, scope func(*agentv1.Intercept) *agentv1.Intercept) {
		p, way, alice, _ := silent(t, says("alice"))
		p.table.Set([]*agentv1.Intercept{scope(alice)})
		require.Equal(t, "alice / ", text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)))
		way.stop()
		in, out := io.Pipe()
		var asking sync.WaitGroup
		asking.Go(func() {
			assert.Equal(t, "app / first second", text(t, p.ask(t, transport, http.MethodPost, "/", "alice", in)))
		})
		_, err := io.WriteString(out, "first ")
		require.NoError(t, err)
		require.Eventually(t, func() bool { return !p.table.Port(p.port).Targets()[0].Laptop.Reachable() }, patience,
			time.Millisecond)
		_, err = io.WriteString(out, "second")
		require.NoError(t, err)
		require.NoError(t, out.Close())
		asking.Wait()
		way.goOn()

		require.Eventually(t, func() bool {
			return text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)) == "alice / "
		}, patience, 10*time.Millisecond)
		way.stop()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.address+"/sum",
			bytes.NewReader(make([]byte, 4*replay.MaxSize)))
		require.NoError(t, err)
		r.Header.Set("X-Dev", "alice")
		answer, err := transport.RoundTrip(r)
		if err == nil {
			require.Equal(t, http.StatusBadGateway, answer.StatusCode)
			_ = answer.Body.Close()
		}
		require.Equal(t, "app / ", text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)))
	})
	t.Run("both ways at once", func(t *testing.T) {
		t.Parallel()
		transport := transports(t)["HTTP/2"]
		p, way, _, _ := silent(t, says("alice"))
		require.Equal(t, "alice / ", text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)))
		way.stop()
		in, out := io.Pipe()
		defer out.Close()
		go func() { _, _ = io.WriteString(out, "one\n") }()
		answer := p.ask(t, transport, http.MethodPost, "/echo", "alice", in)
		lines := bufio.NewReader(answer.Body)
		for _, want := range []string{"one", "two"} {
			got, err := lines.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "app "+want+"\n", got)
			if want == "one" {
				_, err = io.WriteString(out, "two\n")
				require.NoError(t, err)
			}
		}
	})
}

// A lost relay connection ends the requests that are not idempotent, because the laptop may have
// got them, and no others.
func TestIdempotentRequestsAreReplayed(t *testing.T) {
	known := transports(t)
	for name, global := range map[string]bool{
		"HTTP/1.1": false, "HTTP/2": false, "HTTP/1.1, all of it": true, "HTTP/2, all of it": true,
	} {
		t.Run(name, func(t *testing.T) {
			version, _, _ := strings.Cut(name, ",")
			transport := known[version]
			taken, leave := make(chan struct{}), make(chan struct{})
			defer close(leave)
			var known sync.Map
			p, way, alice, _ := silent(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, before := known.LoadOrStore(r.Method, nil); !before {
					close(taken)
					<-leave
				}
				says("alice").ServeHTTP(w, r)
			}))
			if global {
				p.table.Set([]*agentv1.Intercept{all(alice)})
			}
			known.Store(http.MethodGet, nil)
			for _, method := range []string{http.MethodDelete, http.MethodPut, http.MethodPost} {
				require.Eventually(t, func() bool {
					return text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)) == "alice / "
				}, patience, 10*time.Millisecond)
				taken = make(chan struct{})
				cut := make(chan struct{})
				go func() { <-taken; way.cut(); close(cut) }()
				r, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.address+"/",
					strings.NewReader("body"))
				require.NoError(t, err)
				r.GetBody = nil // or the client would repeat it
				r.Header.Set("X-Dev", "alice")
				answer, err := transport.RoundTrip(r)
				select {
				case <-cut:
				case <-time.After(patience):
					require.Fail(t, "the laptop got no request")
				}
				if err == nil {
					t.Cleanup(func() { _ = answer.Body.Close() })
				}
				if method == http.MethodPost {
					require.True(t, err != nil || answer.StatusCode == http.StatusBadGateway)
				} else {
					require.NoError(t, err)
					require.Contains(t, text(t, answer), " / body")
				}
			}
		})
	}
}

// The same holds for a global intercept: for the next request of a connection, and for whatever
// a new connection begins with.
func TestAppAnswersForASilentGlobalLaptop(t *testing.T) {
	p, way, alice, _ := silent(t, says("alice"))
	p.table.Set([]*agentv1.Intercept{all(alice)})
	kept, other := p.browse(t), p.browse(t)
	for _, b := range []*browser{kept, other} {
		require.Equal(t, "alice /1 ", b.get(t, "/1"))
		require.Equal(t, "alice /2 ", b.get(t, "/2"))
	}
	way.stop()
	var asking sync.WaitGroup
	asking.Go(func() { assert.Equal(t, "app /3 ", kept.get(t, "/3")) })
	_, err := io.WriteString(other, "POST /3 HTTP/1.1\r\nHost: catalog\r\nContent-Length: 10\r\n\r\norder")
	require.NoError(t, err)
	asking.Wait()
	_, err = io.WriteString(other, " more")
	require.NoError(t, err)
	require.Equal(t, "app /3 order more", other.answer(t))
	for _, b := range []*browser{kept, other, p.browse(t)} {
		require.Equal(t, "app /4 ", b.get(t, "/4"))
	}
	way.goOn()
	require.Eventually(t, func() bool { return kept.get(t, "/5") == "alice /5 " }, patience, 10*time.Millisecond,
		"taken up again")
}
