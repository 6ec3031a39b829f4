//go:build linux

package passthrough

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// servePassthrough serves a passthrough in front of an app, and returns the address for clients.
// The policy is HandOverAll while intercepted returns true, and else ToApp. intercepted and
// handOver may be nil.
func servePassthrough(
	t testing.TB, app net.Listener, intercepted func() bool, handOver func(Handover),
) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	port := uint16(app.Addr().(*net.TCPAddr).Port)
	serving.Go(func() {
		assert.NoError(t, Serve(ctx, Config{
			Listeners: map[uint16]*net.TCPListener{port: l.(*net.TCPListener)},
			Policy: func(p uint16) Policy {
				assert.Equal(t, port, p)
				if intercepted != nil && intercepted() {
					return HandOverAll
				}
				return ToApp
			},
			HandOver: handOver,
		}))
	})
	t.Cleanup(func() { stop(); serving.Wait(); _ = l.Close() })
	return l.Addr().String()
}

// newApp accepts connections, and calls serve for each, until the test ends.
func newApp(t testing.TB, serve func(*net.TCPConn)) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer c.Close(); serve(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return l
}

// dial connects a client. The connection fails after 20 seconds, and is closed when the test ends.
func dial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// The sizes cover bytes that are copied, bytes that are spliced, and bytes that a slow reader
// leaves in the backlog.
func TestBytesArriveCompleteInBothDirectionsAtOnce(t *testing.T) {
	for _, size := range []int{0, 1, bufferSize - 1, bufferSize, bufferSize + 1, 40 << 20} {
		for _, slow := range []time.Duration{0, time.Millisecond} {
			if slow > 0 && size > 1<<20 {
				size = 8 << 20
			}
			t.Run(fmt.Sprintf("%d bytes, pause %s", size, slow), func(t *testing.T) {
				back := make([]byte, size)
				_, _ = rand.Read(back)
				got := make(chan [32]byte, 1)
				address := servePassthrough(t, newApp(t, func(c *net.TCPConn) {
					var both sync.WaitGroup
					both.Go(func() {
						_, err := c.Write(back)
						assert.NoError(t, err)
						assert.NoError(t, c.CloseWrite())
					})
					hash := sha256.New()
					_, err := io.Copy(hash, pausingReader{c, slow})
					assert.NoError(t, err)
					both.Wait()
					got <- [32]byte(hash.Sum(nil))
				}), nil, nil)

				c := dial(t, address)
				sent := make([]byte, size)
				_, _ = rand.Read(sent)
				var writing sync.WaitGroup
				writing.Go(func() {
					_, err := c.Write(sent)
					assert.NoError(t, err)
					assert.NoError(t, c.CloseWrite())
				})
				received, err := io.ReadAll(pausingReader{c, slow})
				require.NoError(t, err)
				writing.Wait()
				require.True(t, bytes.Equal(back, received))
				require.Equal(t, sha256.Sum256(sent), <-got)
			})
		}
	}
}

// pausingReader sleeps before each read.
type pausingReader struct {
	r     io.Reader
	pause time.Duration
}

func (s pausingReader) Read(b []byte) (int, error) {
	time.Sleep(s.pause)
	return s.r.Read(b)
}

func TestHalfCloseKeepsTheOtherDirectionOpen(t *testing.T) {
	address := servePassthrough(t, newApp(t, func(c *net.TCPConn) {
		request, err := io.ReadAll(c)
		assert.NoError(t, err)
		_, err = c.Write(append([]byte("after your end: "), request...))
		assert.NoError(t, err)
	}), nil, nil)
	c := dial(t, address)
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "after your end: hello", string(answer))
}

func TestResetIsPassedOnAsAReset(t *testing.T) {
	t.Run("reset by the app", func(t *testing.T) {
		c := dial(t, servePassthrough(t, newApp(t, func(c *net.TCPConn) {
			_, _ = c.Read(make([]byte, 5))
			_ = c.SetLinger(0)
		}), nil, nil))
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		_, err = io.ReadAll(c)
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("reset by the client", func(t *testing.T) {
		ended := make(chan error, 1)
		c := dial(t, servePassthrough(t, newApp(t, func(c *net.TCPConn) {
			_, err := io.ReadAll(c)
			ended <- err
		}), nil, nil))
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, c.SetLinger(0))
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	})
	t.Run("an app that does not listen", func(t *testing.T) {
		closed, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, closed.Close())
		c, err := net.Dial("tcp", servePassthrough(t, closed, nil, nil))
		if err == nil { // the reset may arrive before Dial returns
			_, err = io.ReadAll(c)
			_ = c.Close()
		}
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestAThousandConnectionsWorkAtOnce(t *testing.T) {
	address := servePassthrough(t, newApp(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }), nil, nil)
	var all sync.WaitGroup
	var failed atomic.Int64
	for i := range 1000 {
		all.Go(func() {
			err := func() error {
				c, err := net.Dial("tcp", address)
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				for j := range 5 {
					sent := fmt.Sprintf("%d/%d", i, j)
					if _, err := c.Write([]byte(sent)); err != nil {
						return err
					}
					received := make([]byte, len(sent))
					if _, err := io.ReadFull(c, received); err != nil {
						return err
					}
					if string(received) != sent {
						return errors.New(string(received))
					}
				}
				return nil
			}()
			if err != nil {
				failed.Add(1)
				t.Log(err)
			}
		})
	}
	all.Wait()
	require.Zero(t, failed.Load())
}

// An open HTTP/1 connection is handed over where a request begins, with the bytes of that request.
// A new connection is handed over at once.
func TestHTTP1ConnectionIsHandedOverAtARequest(t *testing.T) {
	answer := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "app") }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { _ = server.Close(); serving.Wait() })

	var intercepted atomic.Bool
	handovers := make(chan Handover, 2)
	address := servePassthrough(t, listener, intercepted.Load, func(h Handover) { handovers <- h })
	request := "GET / HTTP/1.1\r\nHost: app\r\n\r\n"
	c := dial(t, address)
	reply := make([]byte, 4<<10)
	for range 3 {
		_, err = c.Write([]byte(request))
		require.NoError(t, err)
		n, err := c.Read(reply)
		require.NoError(t, err)
		require.Contains(t, string(reply[:n]), "app")
	}
	intercepted.Store(true)
	_, err = c.Write([]byte(request))
	require.NoError(t, err)
	h := <-handovers
	require.Equal(t, request, string(h.First))
	_, err = h.Client.Write([]byte("laptop"))
	require.NoError(t, err)
	n, err := c.Read(reply)
	require.NoError(t, err)
	require.Equal(t, "laptop", string(reply[:n]))
	require.NoError(t, h.Client.Close())

	_ = dial(t, address)
	h = <-handovers
	require.Empty(t, h.First)
	require.NoError(t, h.Client.Close())
}

// After Stop the passthrough accepts no more clients, and goes on until the last connection has
// ended.
func TestStopWaitsForOpenConnections(t *testing.T) {
	server := newApp(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	stop, ended := make(chan struct{}), make(chan error, 1)
	// The test waits for this goroutine by ended.
	go func() {
		ended <- Serve(t.Context(), Config{
			Listeners: map[uint16]*net.TCPListener{uint16(server.Addr().(*net.TCPAddr).Port): l.(*net.TCPListener)},
			Policy:    func(uint16) Policy { return ToApp },
			Stop:      stop,
		})
	}()
	echo := func(c *net.TCPConn) {
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 5))
		require.NoError(t, err)
	}
	open := dial(t, l.Addr().String())
	echo(open)
	waiting := dial(t, l.Addr().String())
	close(stop)
	echo(waiting)
	echo(open)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, open.Close())
	echo(waiting)
	require.NoError(t, waiting.Close())
	require.NoError(t, <-ended)
}
