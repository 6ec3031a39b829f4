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

// front puts a passthrough in front of an app and returns where clients connect.
func front(t *testing.T, app net.Listener, diverted func() bool, take func(Handover)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	port := uint16(app.Addr().(*net.TCPAddr).Port)
	serving.Go(func() {
		assert.NoError(t, Serve(ctx, Config{
			Listeners: map[uint16]*net.TCPListener{port: l.(*net.TCPListener)},
			Owner: func(p uint16) Owner {
				assert.Equal(t, port, p)
				if diverted != nil && diverted() {
					return Elsewhere
				}
				return App
			},
			Take: take,
		}))
	})
	t.Cleanup(func() { stop(); serving.Wait(); _ = l.Close() })
	return l.Addr().String()
}

// app accepts and serves until the test's end.
func app(t *testing.T, serve func(*net.TCPConn)) net.Listener {
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

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// Whole in both directions at once, in sizes that are copied, that are spliced, and that the other side is slow to take.
func TestBytesArriveWhole(t *testing.T) {
	for _, size := range []int{0, 1, bufferSize - 1, bufferSize, bufferSize + 1, 40 << 20} {
		for _, slow := range []time.Duration{0, time.Millisecond} {
			if slow > 0 && size > 1<<20 {
				size = 8 << 20
			}
			t.Run(fmt.Sprintf("%d bytes, pause %s", size, slow), func(t *testing.T) {
				back := make([]byte, size)
				_, _ = rand.Read(back)
				got := make(chan [32]byte, 1)
				address := front(t, app(t, func(c *net.TCPConn) {
					var both sync.WaitGroup
					both.Go(func() {
						_, err := c.Write(back)
						assert.NoError(t, err)
						assert.NoError(t, c.CloseWrite())
					})
					hash := sha256.New()
					_, err := io.Copy(hash, slowly{c, slow})
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
				received, err := io.ReadAll(slowly{c, slow})
				require.NoError(t, err)
				writing.Wait()
				require.True(t, bytes.Equal(back, received))
				require.Equal(t, sha256.Sum256(sent), <-got)
			})
		}
	}
}

type slowly struct {
	r     io.Reader
	pause time.Duration
}

func (s slowly) Read(b []byte) (int, error) {
	time.Sleep(s.pause)
	return s.r.Read(b)
}

func TestHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	address := front(t, app(t, func(c *net.TCPConn) {
		said, err := io.ReadAll(c)
		assert.NoError(t, err)
		_, err = c.Write(append([]byte("after your end: "), said...))
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

func TestResetStaysAReset(t *testing.T) {
	t.Run("of the app's", func(t *testing.T) {
		c := dial(t, front(t, app(t, func(c *net.TCPConn) {
			_, _ = c.Read(make([]byte, 5))
			_ = c.SetLinger(0)
		}), nil, nil))
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		_, err = io.ReadAll(c)
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("of the client's", func(t *testing.T) {
		ended := make(chan error, 1)
		c := dial(t, front(t, app(t, func(c *net.TCPConn) {
			_, err := io.ReadAll(c)
			ended <- err
		}), nil, nil))
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, c.SetLinger(0))
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	})
	t.Run("of an app that does not listen", func(t *testing.T) {
		gone, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, gone.Close())
		c, err := net.Dial("tcp", front(t, gone, nil, nil))
		if err == nil { // the reset may come even before the dial returns
			_, err = io.ReadAll(c)
			_ = c.Close()
		}
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestThousandConnections(t *testing.T) {
	address := front(t, app(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }), nil, nil)
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
					said := fmt.Sprintf("%d/%d", i, j)
					if _, err := c.Write([]byte(said)); err != nil {
						return err
					}
					heard := make([]byte, len(said))
					if _, err := io.ReadFull(c, heard); err != nil {
						return err
					}
					if string(heard) != said {
						return errors.New(string(heard))
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

// A live HTTP/1 connection is given away where a request begins, with that request's bytes; a new connection at once.
func TestHandover(t *testing.T) {
	answer := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "app") }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })

	var diverted atomic.Bool
	taken := make(chan Handover, 2)
	address := front(t, listener, diverted.Load, func(h Handover) { taken <- h })
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
	diverted.Store(true)
	_, err = c.Write([]byte(request))
	require.NoError(t, err)
	h := <-taken
	require.Equal(t, request, string(h.First))
	_, err = h.Client.Write([]byte("elsewhere"))
	require.NoError(t, err)
	n, err := c.Read(reply)
	require.NoError(t, err)
	require.Equal(t, "elsewhere", string(reply[:n]))
	require.NoError(t, h.Client.Close())

	_ = dial(t, address)
	h = <-taken
	require.Empty(t, h.First)
	require.NoError(t, h.Client.Close())
}

// A passthrough that is to stop takes nothing new and goes on until the last connection has ended.
func TestStopLetsConnectionsEnd(t *testing.T) {
	server := app(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Serve(t.Context(), Config{
			Listeners: map[uint16]*net.TCPListener{uint16(server.Addr().(*net.TCPAddr).Port): l.(*net.TCPListener)},
			Owner:     func(uint16) Owner { return App },
			Stop:      stop,
		})
	}()
	say := func(c *net.TCPConn) {
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 5))
		require.NoError(t, err)
	}
	open := dial(t, l.Addr().String())
	say(open)
	waiting := dial(t, l.Addr().String())
	close(stop)
	say(waiting)
	say(open)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, open.Close())
	say(waiting)
	require.NoError(t, waiting.Close())
	require.NoError(t, <-ended)
}
