package http2

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// crude is a client that keeps to few rules.
type crude struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	block  bytes.Buffer
	fields *hpack.Encoder
	next   uint32
	deaf   bool // does not hear what the settings are

	writing sync.Mutex
	mu      sync.Mutex
	bodies  map[uint32]int
	resets  map[uint32]http2.ErrCode
	most    uint32
	ended   bool
}

func newCrude(t *testing.T, b *bench, deaf bool, settings ...http2.Setting) *crude {
	conn, err := b.client.DialContext(t.Context(), "", "")
	require.NoError(t, err)
	c := &crude{
		t: t, conn: conn, framer: http2.NewFramer(conn, conn), next: 1, deaf: deaf, bodies: map[uint32]int{},
		resets: map[uint32]http2.ErrCode{},
	}
	c.fields = hpack.NewEncoder(&c.block)
	_, err = io.WriteString(conn, http2.ClientPreface)
	require.NoError(t, err)
	c.write(func() error { return c.framer.WriteSettings(settings...) })
	go c.read() // and acknowledge, which must not come before one's own
	synctest.Wait()
	return c
}

func (c *crude) write(frame func() error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	assert.NoError(c.t, frame())
}

// read takes all that comes.
func (c *crude) read() {
	for {
		f, err := c.framer.ReadFrame()
		c.mu.Lock()
		if err != nil {
			c.ended = true
			c.mu.Unlock()
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingMaxConcurrentStreams); ok {
				c.most = v
			}
			if !f.IsAck() && !c.deaf {
				go c.write(c.framer.WriteSettingsAck)
			}
		case *http2.DataFrame:
			c.bodies[f.StreamID] += len(f.Data())
		case *http2.RSTStreamFrame:
			c.resets[f.StreamID] = f.ErrCode
		}
		c.mu.Unlock()
	}
}

// ask begins a request.
func (c *crude) ask(path string, end bool, more ...hpack.HeaderField) uint32 {
	id := c.next
	c.next += 2
	c.write(func() error {
		c.block.Reset()
		for _, f := range append([]hpack.HeaderField{
			{Name: ":method", Value: "POST"},
			{Name: ":scheme", Value: "http"},
			{Name: ":authority", Value: "a"},
			{Name: ":path", Value: path},
		}, more...) {
			_ = c.fields.WriteField(f)
		}
		return c.framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: c.block.Bytes(),
			EndStream: end, EndHeaders: true,
		})
	})
	return id
}

func (c *crude) reset(id uint32) {
	c.write(func() error { return c.framer.WriteRSTStream(id, http2.ErrCodeCancel) })
}

// refused counts the streams that were ended with a code.
func (c *crude) refused(code http2.ErrCode) (n int) {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, got := range c.resets {
		if got == code {
			n++
		}
	}
	return n
}

// heap is how much is held.
func heap() int {
	synctest.Wait()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// standing does not read, nor answer.
func standing(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

var zeros = make([]byte, 64<<10)

// endless answers for as long as somebody takes it.
func endless(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		if _, err := w.Write(zeros); err != nil {
			return
		}
	}
}

// limited runs a test with a crude client.
func limited(t *testing.T, app, laptop http.HandlerFunc, test func(t *testing.T, b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b, end := newBench(t, app, laptop, says("nobody"))
		defer end()
		test(t, b)
	})
}

// The app's limit of requests at once holds for the client, who may ask for those above it again.
func TestNoMoreRequestsThanTheAppTakes(t *testing.T) {
	for announced, want := range map[int]int{10: 10, 1 << 20: maxStreams} {
		t.Run(fmt.Sprint(announced), func(t *testing.T) {
			limited(t, standing, standing, func(t *testing.T, b *bench) {
				b.app.server.HTTP2.MaxConcurrentStreams = announced
				c := newCrude(t, b, false)
				require.EqualValues(t, want, c.most)
				var last uint32
				for range want + 5 {
					last = c.ask("/", true)
				}
				assert.Equal(t, 5, c.refused(http2.ErrCodeRefusedStream))
				c.reset(1)
				c.reset(3)
				c.ask("/", true)
				c.ask("/laptop", true)
				assert.Equal(t, 5, c.refused(http2.ErrCodeRefusedStream), "there is room again")
				assert.Contains(t, c.resets, last)
				_ = c.conn.Close()
			})
		})
	}
}

// The fields of waiting requests are bounded, whether the app or a laptop makes them wait.
func TestFieldsAreBounded(t *testing.T) {
	for _, path := range []string{"/", "/laptop"} {
		t.Run(path, func(t *testing.T) {
			limited(t, standing, standing, func(t *testing.T, b *bench) {
				b.app.server.HTTP2.MaxConcurrentStreams = laptopLimit
				c := newCrude(t, b, true)
				for range laptopLimit {
					c.ask(path, true)
				}
				before := heap()
				field := hpack.HeaderField{Name: "x-little", Value: "o"} // a byte each, once it is known
				many := make([]hpack.HeaderField, 10_000)
				for i := range many {
					many[i] = field
				}
				for range 40 {
					c.ask(path, true, many...)
				}
				assert.Less(t, heap()-before, 12<<20)
				_ = c.conn.Close()
			})
		})
	}
}

// The requests that are stored for a second try are bounded, however small their parts are.
func TestWhatIsKeptIsBounded(t *testing.T) {
	for _, c := range []struct{ streams, parts, size, most int }{{100, 500, 1, 2 << 20}, {300, 4, 15_000, 40 << 20}} {
		t.Run(fmt.Sprint(c.size), func(t *testing.T) {
			limited(t, standing, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
				func(t *testing.T, b *bench) {
					b.app.server.HTTP2.MaxConcurrentStreams = 1000
					b.laptop.server.HTTP2.MaxConcurrentStreams = 1000
					client := newCrude(t, b, false)
					var streams []uint32
					for range c.streams {
						streams = append(streams, client.ask("/laptop", false))
					}
					before := heap()
					part := make([]byte, c.size)
					for _, id := range streams {
						for range c.parts {
							client.write(func() error { return client.framer.WriteData(id, false, part) })
						}
						synctest.Wait() // it may send no more before this is passed on
					}
					assert.Less(t, heap()-before, c.most)
					sw := b.last.Load()
					assert.LessOrEqual(t, sw.replayBytes, maxReplay)
					for _, id := range streams {
						client.reset(id)
					}
					synctest.Wait()
					assert.Zero(t, sw.replayBytes)
					assert.Zero(t, sw.fieldBytes)
					assert.Zero(t, sw.client.recv.held)
					assert.Zero(t, sw.client.recv.parked)
					_ = client.conn.Close()
				})
		})
	}
}

// The Router stops reading an answer that the client does not read. Other answers go on.
func TestUnreadAnswersAreBounded(t *testing.T) {
	for _, path := range []string{"/", "/laptop"} {
		t.Run(path, func(t *testing.T) {
			body := strings.Repeat("y", 3<<20)
			limited(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "whole") {
					_, _ = io.WriteString(w, body)
					return
				}
				endless(w, r)
			}, endless, func(t *testing.T, b *bench) {
				b.app.server.HTTP2.MaxConcurrentStreams = 1000
				b.laptop.server.HTTP2.MaxConcurrentStreams = 1000
				c := newCrude(t, b, false, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				before := heap()
				for range 240 {
					c.ask(path, true)
				}
				assert.Less(t, heap()-before, 20<<20)
				id := c.ask("/whole", true)
				c.write(func() error { return c.framer.WriteWindowUpdate(id, 1<<30) })
				c.write(func() error { return c.framer.WriteWindowUpdate(0, 1<<30) })
				synctest.Wait()
				c.mu.Lock()
				assert.Equal(t, len(body), c.bodies[id])
				c.mu.Unlock()
				_ = c.conn.Close()
			})
		})
	}
}

// Many connections together hold no more than the agent's budget. Connections that hold little are
// still served.
func TestAllConnectionsAreBounded(t *testing.T) {
	limited(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "little") {
			_, _ = io.WriteString(w, "app")
			return
		}
		endless(w, r)
	}, standing, func(t *testing.T, b *bench) {
		before := heap()
		var clients []*crude
		for range 8 {
			c := newCrude(t, b, false, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			for range 150 {
				c.ask("/", true)
			}
			clients = append(clients, c)
		}
		assert.Less(t, heap()-before, 50<<20)
		assert.Less(t, shared.held.Load(), int64(40<<20))
		_, text, err := b.ask("/little", nil)
		require.NoError(t, err)
		assert.Equal(t, "app", text)
		for _, c := range clients {
			_ = c.conn.Close()
		}
		b.client.CloseIdleConnections()
		synctest.Wait()
		assert.Zero(t, shared.held.Load())
		assert.Zero(t, shared.switches.Load())
	})
}

// Requests that are taken back leave nothing, though the app takes no more of them.
func TestResetsLeaveNothing(t *testing.T) {
	for _, path := range []string{"/", "/laptop"} {
		t.Run(path, func(t *testing.T) {
			limited(t, standing, standing, func(t *testing.T, b *bench) {
				b.app.server.HTTP2.MaxConcurrentStreams = laptopLimit
				c := newCrude(t, b, true)
				for range laptopLimit {
					c.ask(path, true)
				}
				before := heap()
				for range 100 {
					first := c.next
					for range 100 {
						c.ask(path, true)
					}
					synctest.Wait()
					for ; first < c.next; first += 2 {
						c.reset(first)
					}
				}
				assert.Less(t, heap()-before, 2<<20)
				_ = c.conn.Close()
			})
		})
	}
}

// Fields without an end are the end of the connection.
func TestFieldsWithoutAnEnd(t *testing.T) {
	limited(t, standing, standing, func(t *testing.T, b *bench) {
		c := newCrude(t, b, false)
		before := heap()
		var block bytes.Buffer
		fields := hpack.NewEncoder(&block)
		for range 1000 {
			_ = fields.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 10), Sensitive: true})
		}
		var err error
		for i := range 10_000 {
			if i == 0 {
				err = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()})
			} else {
				err = c.framer.WriteContinuation(1, false, block.Bytes())
			}
			if err != nil {
				break
			}
		}
		require.Error(t, err)
		synctest.Wait()
		assert.True(t, c.ended)
		assert.Less(t, heap()-before, 20<<20)
	})
}

// While much waits for a laptop, streams get small windows. The Router accepts what the client sent
// before it knew of that, and a client that goes on with its request makes progress.
func TestUploadsWhileMuchWaits(t *testing.T) {
	limited(t, says("app"), standing, func(t *testing.T, b *bench) {
		b.laptop.server.HTTP2.MaxConcurrentStreams = 1000
		b.app.server.HTTP2.MaxConcurrentStreams = 1000
		_, _, err := b.ask("/", nil)
		require.NoError(t, err)
		body := strings.Repeat("y", 3<<20)
		var others, stuck sync.WaitGroup
		var begun []*io.PipeWriter
		for _, n := range []int{1, 10_000, 20_000, 40_000, 60_000, 100_000} {
			in, out := io.Pipe()
			begun = append(begun, out)
			others.Go(func() {
				_, text, err := b.ask("/", in)
				assert.NoError(t, err)
				assert.Equal(t, len("app ")+n+len(body), len(text))
			})
			_, err := io.WriteString(out, body[:n])
			require.NoError(t, err)
		}
		stop := make(chan struct{})
		for range 150 {
			stuck.Go(func() {
				in, out := io.Pipe()
				go func() { <-stop; _ = in.Close() }()
				go func() { _, _ = out.Write(make([]byte, 3<<20)) }()
				_, _, err := b.ask("/laptop", in)
				assert.Error(t, err)
			})
		}
		synctest.Wait()
		sw := b.last.Load()
		assert.True(t, sw.client.recv.tight)
		for _, out := range begun {
			_, err := io.WriteString(out, body)
			require.NoError(t, err)
			require.NoError(t, out.Close())
		}
		for range 4 {
			others.Go(func() {
				_, text, err := b.ask("/", piped(body))
				assert.NoError(t, err)
				assert.Equal(t, len("app ")+len(body), len(text))
			})
		}
		others.Wait()
		close(stop)
		stuck.Wait()
		synctest.Wait()
		assert.EqualValues(t, 1, b.opened.Load())
		assert.False(t, sw.client.recv.tight)
		assert.Zero(t, sw.client.recv.held)
		assert.Zero(t, sw.client.recv.parked)
	})
}

// What waits for laptops that take no copies is bounded for all connections together.
func TestAllCopiesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
		b, end := newBench(t, drain, drain, standing)
		defer end()
		b.copies.server.HTTP2.MaxReceiveBufferPerConnection = 1
		b.copies.server.HTTP2.MaxReceiveBufferPerStream = 1
		var clients []*crude
		for range 40 {
			c := newCrude(t, b, false)
			clients = append(clients, c)
			id := c.ask("/copy", false)
			synctest.Wait()
			for range 31 {
				c.write(func() error { return c.framer.WriteData(id, false, zeros[:8_000]) })
				synctest.Wait()
			}
		}
		assert.Greater(t, shared.copied.Load(), int64(copiesTogether*3/4))
		assert.LessOrEqual(t, shared.copied.Load(), int64(copiesTogether))
		assert.NotZero(t, b.copies.lost.Load())
		for _, c := range clients {
			_ = c.conn.Close()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Zero(t, shared.copied.Load())
	})
}
