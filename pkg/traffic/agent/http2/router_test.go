package http2

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is a real server, and the way there.
type place struct {
	*Backend
	server *http.Server
	conns  chan net.Conn
	dials  atomic.Int32
	lost   atomic.Int64
	fails  atomic.Bool
	over   context.CancelFunc

	serving sync.Once

	mu     sync.Mutex
	dialed []net.Conn
	closed bool
}

func newPlace(t *testing.T, running *sync.WaitGroup, h http.HandlerFunc) *place {
	p := &place{conns: make(chan net.Conn, 100)}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	p.server = &http.Server{Handler: h, Protocols: protocols, HTTP2: &http.HTTP2Config{}}
	p.Backend = &Backend{Dial: func(context.Context) (net.Conn, error) {
		if p.fails.Load() {
			return nil, errors.New("nobody is there")
		}
		here, there := net.Pipe()
		p.serving.Do(func() { running.Go(func() { _ = p.server.Serve(p) }) })
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed {
			return nil, net.ErrClosed
		}
		p.conns <- there
		p.dials.Add(1)
		p.dialed = append(p.dialed, here)
		return here, nil
	}, Lost: func(n uint64) { p.lost.Add(int64(n)) }}
	p.Life, p.over = context.WithCancel(t.Context())
	return p
}

func (p *place) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p *place) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		close(p.conns)
	}
	return nil
}
func (p *place) Addr() net.Addr { return &net.TCPAddr{} }

// cut ends the connections there are.
func (p *place) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.dialed {
		_ = c.Close()
	}
	p.dialed = nil
}

const laptopLimit = 30 // of requests at once

// bench is a client in front of a Router, an app, a laptop that requests with "laptop" in their
// path go to, and one that gets copies of those with "copy".
type bench struct {
	app, laptop, copies *place
	client              *http.Transport
	opened              atomic.Int32
	strict              atomic.Bool
	last                atomic.Pointer[Router]
}

func newBench(t *testing.T, app, laptop, copies http.HandlerFunc) (*bench, func()) {
	var running sync.WaitGroup
	b := &bench{app: newPlace(t, &running, app), laptop: newPlace(t, &running, laptop), copies: newPlace(t, &running,
		copies)}
	b.app.Lost, b.laptop.Lost = nil, nil
	b.laptop.server.HTTP2.MaxConcurrentStreams = laptopLimit
	ctx, cancel := context.WithCancel(context.Background())
	route := func(r *Request) Route {
		to := Route{Strict: b.strict.Load()}
		if strings.Contains(r.Target, "laptop") {
			to.Backend = b.laptop.Backend
		}
		if strings.Contains(r.Target, "copy") {
			to.Copies = []*Backend{b.copies.Backend}
		}
		return to
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	b.client = &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn,
		error,
	) {
		here, there := net.Pipe()
		b.opened.Add(1)
		sw := New(ctx, there, Config{App: b.app.Backend, Route: route, Go: running.Go})
		b.last.Store(sw)
		running.Go(sw.Serve)
		return here, nil
	}}
	return b, func() {
		b.client.CloseIdleConnections()
		cancel()
		for _, p := range []*place{b.app, b.laptop, b.copies} {
			_ = p.server.Close()
			p.over()
		}
		running.Wait()
	}
}

// ask returns an answer's status and body.
func (b *bench) ask(path string, body io.Reader) (status int, text string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://catalog"+path, body)
	if err != nil {
		return 0, "", err
	}
	answer, err := b.client.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(all), err
}

func says(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", name, body)
	}
}

// piped is a body of which nothing is known before it comes.
func piped(text string) io.Reader { return struct{ io.Reader }{strings.NewReader(text)} }

// The app answers for a laptop that is unreachable, or that is gone before it has read anything. It
// gets the whole bodies.
func TestTheAppAnswersForALaptop(t *testing.T) {
	for name, c := range map[string]struct {
		set    func(*bench)
		status int
		text   string
	}{
		"that is there":      {func(*bench) {}, 200, "laptop body"},
		"that cannot be had": {func(b *bench) { b.laptop.fails.Store(true) }, 200, "app body"},
		"that must not be missed": {
			func(b *bench) { b.laptop.fails.Store(true); b.strict.Store(true) }, 503,
			"detour: the laptop that intercepts this request is unreachable\n",
		},
		"that speaks no HTTP/2": {func(b *bench) {
			protocols := new(http.Protocols)
			protocols.SetHTTP1(true)
			b.laptop.server.Protocols = protocols
		}, 200, "app body"},
		"whose app is gone as well": {func(b *bench) { b.laptop.fails.Store(true); b.app.fails.Store(true) }, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, end := newBench(t, says("app"), says("laptop"), says("nobody"))
				defer end()
				c.set(b)
				for range 3 {
					status, text, err := b.ask("/laptop", piped("body"))
					assert.Equal(t, c.status, status)
					assert.Equal(t, c.text, text)
					assert.Equal(t, c.status == 0, err != nil, "%v", err)
				}
			})
		})
	}
}

// When a laptop goes within a request, the app gets a request without a body. Of a request with a
// body nobody knows whether the laptop has processed it.
func TestALaptopGoesWithinARequest(t *testing.T) {
	for name, c := range map[string]struct {
		body   io.Reader
		begins bool
		status int
		text   string
	}{
		"no body":           {nil, false, 200, "app "},
		"a body":            {strings.NewReader("body"), false, 502, ""},
		"within its answer": {nil, true, 200, "half"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := make(chan struct{})
				b, end := newBench(t, says("app"), func(w http.ResponseWriter, r *http.Request) {
					if _, _ = io.ReadAll(r.Body); strings.HasSuffix(r.URL.Path, "first") {
						return
					}
					if c.begins {
						_, _ = io.WriteString(w, "half")
						_ = http.NewResponseController(w).Flush()
					}
					asked <- struct{}{}
					<-r.Context().Done()
				}, says("nobody"))
				defer end()
				status, _, err := b.ask("/laptop/first", nil)
				require.NoError(t, err)
				require.Equal(t, 200, status)
				go func() {
					<-asked
					synctest.Wait()
					b.laptop.fails.Store(true)
					b.laptop.cut()
				}()
				status, text, err := b.ask("/laptop", c.body)
				assert.Equal(t, c.status, status)
				assert.Equal(t, c.text, text)
				assert.Equal(t, c.begins, err != nil, "%v", err)
				_, text, err = b.ask("/", nil)
				require.NoError(t, err)
				assert.Equal(t, "app ", text)
				assert.EqualValues(t, 1, b.opened.Load(), "the client need not know")
			})
		})
	}
}

// A client's connection ends with the app's connection. An app that asks for another connection
// gets one.
func TestTheAppEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, end := newBench(t, says("app"), says("laptop"), says("nobody"))
		defer end()
		_, text, err := b.ask("/", nil)
		require.NoError(t, err)
		require.Equal(t, "app ", text)
		b.app.cut()
		synctest.Wait()
		_, text, err = b.ask("/", piped("again"))
		require.NoError(t, err)
		require.Equal(t, "app again", text)
		require.EqualValues(t, 2, b.opened.Load())
		require.EqualValues(t, 2, b.app.dials.Load())
	})
}

// The Router respects a server's limit of concurrent requests, and both the app and the laptop
// answer everything in the end.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		slow := func(name string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				n := now.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				time.Sleep(time.Second)
				now.Add(-1)
				says(name)(w, r)
			}
		}
		b, end := newBench(t, says("app"), slow("laptop"), says("nobody"))
		defer end()
		_, _, err := b.ask("/laptop", nil)
		require.NoError(t, err)
		var asking sync.WaitGroup
		for i := range 100 {
			asking.Go(func() {
				body := strings.Repeat("b", i*10_000)
				_, text, err := b.ask("/laptop", piped(body))
				assert.NoError(t, err)
				assert.True(t, text == "laptop "+body, "%.100s", text)
			})
		}
		asking.Wait()
		assert.LessOrEqual(t, most.Load(), int32(laptopLimit))
	})
}

// Requests that nobody reads do not hold up the others on their connection.
func TestOneDoesNotHoldUpTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, end := newBench(t, says("app"), func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			says("nobody"))
		defer end()
		_, _, err := b.ask("/", nil)
		require.NoError(t, err)
		stuck, cancel := context.WithCancel(context.Background())
		var asking sync.WaitGroup
		for range 80 {
			asking.Go(func() {
				r, err := http.NewRequestWithContext(stuck, http.MethodPost, "http://catalog/laptop",
					piped(strings.Repeat("x", 3<<20)))
				if assert.NoError(t, err) {
					_, err = b.client.RoundTrip(r)
					assert.Error(t, err)
				}
			})
		}
		synctest.Wait()
		body := strings.Repeat("y", 3<<20)
		for range 3 {
			_, text, err := b.ask("/", piped(body))
			require.NoError(t, err)
			require.Equal(t, len("app ")+len(body), len(text))
		}
		require.EqualValues(t, 1, b.opened.Load())
		cancel()
		asking.Wait()
	})
}

// A copy lasts as long as its request, however long the request takes and is silent.
func TestACopyLastsAsLongAsItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var copied atomic.Int32
		b, end := newBench(t, says("app"), says("laptop"), func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			for in := bufio.NewScanner(r.Body); in.Scan(); {
				copied.Add(1)
			}
		})
		defer end()
		out, in := io.Pipe()
		go func() {
			for i := range 30 {
				_, _ = fmt.Fprintf(in, "line %d\n", i)
				time.Sleep(time.Minute)
			}
			_ = in.Close()
		}()
		_, _, err := b.ask("/copy", out)
		require.NoError(t, err)
		synctest.Wait()
		assert.EqualValues(t, 30, copied.Load())
		assert.Zero(t, b.copies.lost.Load())
	})
}

// A request ends when the app answers before it has read the body, as with 401. Its copy ends too,
// because a laptop allows only so many concurrent requests.
func TestACopyEndsWithItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got, waiting atomic.Int32
		b, end := newBench(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
			says("laptop"), func(_ http.ResponseWriter, r *http.Request) {
				got.Add(1)
				waiting.Add(1)
				_, _ = io.Copy(io.Discard, r.Body)
				waiting.Add(-1)
			})
		defer end()
		const requests = 300 // more than the laptop's limit
		for range requests {
			body, in := io.Pipe()
			go func() { _, _ = in.Write([]byte("half")) }()
			status, _, err := b.ask("/copy", body)
			require.NoError(t, err)
			require.Equal(t, http.StatusUnauthorized, status)
			_ = body.Close()
		}
		synctest.Wait()
		assert.EqualValues(t, requests, got.Load())
		assert.Zero(t, waiting.Load())
	})
}

// A laptop that stops taking its copies loses them, is said to, and holds nothing up.
func TestACopyThatNobodyTakesIsLost(t *testing.T) {
	for name, size := range map[string]int{"little": 700 << 10, "much": 5 << 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stop := make(chan struct{})
				b, end := newBench(t, func(w http.ResponseWriter, r *http.Request) {
					n, _ := io.Copy(io.Discard, r.Body)
					fmt.Fprint(w, n)
				}, says("laptop"), func(w http.ResponseWriter, r *http.Request) {
					_ = http.NewResponseController(w).Flush() // its head has come, and then nothing more happens
					<-stop
				})
				defer end()
				defer close(stop)
				out, in := io.Pipe()
				go func() {
					for range 10 {
						_, _ = in.Write(make([]byte, size/10))
						synctest.Wait()
					}
					_ = in.Close()
				}()
				_, text, err := b.ask("/copy", out)
				require.NoError(t, err)
				assert.Equal(t, fmt.Sprint(size), text)
				time.Sleep(2 * copyStall)
				want := int64(1)
				if size < 1<<20 {
					want = 0 // it fits into what the server takes without reading
				}
				assert.Equal(t, want, b.copies.lost.Load())
			})
		})
	}
}
