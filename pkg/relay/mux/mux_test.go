package mux

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/detour-dev/detour/pkg/relay"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds the waits of the tests.
const patience = 30 * time.Second

// pair returns the two ends of a TCP connection over loopback.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	b, err = l.Accept()
	require.NoError(t, err)
	return a, b
}

// withTLS puts TLS on a pair.
func withTLS(t testing.TB, a, b net.Conn) (net.Conn, net.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"manager"}, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	certificate := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return relay.Client(a, &tls.Config{RootCAs: pool, ServerName: "manager"}),
		relay.Server(b, &tls.Config{Certificates: []tls.Certificate{certificate}})
}

// process starts a local process that handles each of its connections, and returns an Accept that
// dials it.
func process(t testing.TB, handle func(*net.TCPConn)) Accept {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return func(*agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
		}
		return c, agentv1.RelayStatus_RELAY_STATUS_OK
	}
}

// run runs the two ends of a connection until the test ends.
func run(t testing.TB, a, b net.Conn, accept Accept) (opens, accepts *Conn) {
	opens, accepts = New(a, nil), New(b, accept)
	var running sync.WaitGroup
	running.Go(func() { _ = opens.Run() })
	running.Go(func() { _ = accepts.Run() })
	t.Cleanup(func() { opens.fail(nil); running.Wait() })
	return opens, accepts
}

// newOpener returns an end whose streams the other one accepts.
func newOpener(t testing.TB, accept Accept) *Conn {
	a, b := pair(t)
	opens, _ := run(t, a, b, accept)
	return opens
}

// openStream opens a stream whose deadline bounds the test.
func openStream(t testing.TB, c *Conn) *Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := c.Open(ctx, &agentv1.RelayHeader{Source: "10.0.0.1:1"})
	require.NoError(t, err)
	require.NoError(t, s.SetDeadline(time.Now().Add(patience)))
	return s
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, struct{ io.Reader }{c}) }

// requireEcho sends text, and requires the process to send it back.
func requireEcho(t testing.TB, s *Stream, text string) {
	t.Helper()
	_, err := s.Write([]byte(text))
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(s, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// count returns the number of streams.
func (c *Conn) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// Many streams carry bulk both ways at once, and end with half-closes. Each receives its own bytes
// only.
func TestStreamsCarryAllBytesBothWays(t *testing.T) {
	for name, secure := range map[string]bool{"TCP": false, "TLS": true} {
		for _, count := range []int{1, 20} {
			t.Run(name, func(t *testing.T) {
				a, b := pair(t)
				if secure {
					a, b = withTLS(t, a, b)
				}
				c, accepting := run(t, a, b, process(t, echo))
				var all sync.WaitGroup
				for range count {
					all.Go(func() {
						s := openStream(t, c)
						defer s.Close()
						sent := make([]byte, 3<<20)
						_, _ = rand.Read(sent)
						all.Go(func() {
							_, err := s.Write(sent)
							assert.NoError(t, err)
							assert.NoError(t, s.CloseWrite())
						})
						got, err := io.ReadAll(s)
						assert.NoError(t, err)
						assert.True(t, bytes.Equal(sent, got))
					})
				}
				all.Wait()
				for _, end := range []*Conn{c, accepting} {
					require.Eventually(t, func() bool { return end.count() == 0 }, patience, time.Millisecond)
					end.mu.Lock()
					assert.Zero(t, end.grown)
					end.mu.Unlock()
				}
			})
		}
	}
}

// A stream echoes small messages alone and beside others, so that reading is delegated and taken
// back.
func TestReadsAreDelegatedAndTakenBack(t *testing.T) {
	c := newOpener(t, process(t, echo))
	first := openStream(t, c)
	for range 2 {
		for range 200 {
			requireEcho(t, first, "alone")
		}
		time.Sleep(3 * delegateFor) // until the goroutine reads again
		var all sync.WaitGroup
		for range 8 {
			s := openStream(t, c)
			all.Go(func() {
				defer s.Close()
				for range 200 {
					requireEcho(t, s, "other streams")
				}
			})
		}
		for range 200 {
			requireEcho(t, first, "beside others")
		}
		all.Wait()
	}
}

// ReadAvailable returns the next bytes of the stream, and sometimes there are some.
func TestReadAvailableReturnsTheNextBytes(t *testing.T) {
	a, b := pair(t)
	a, b = withTLS(t, a, b)
	c, _ := run(t, a, b, process(t, echo))
	s := openStream(t, c)
	require.Zero(t, s.ReadAvailable(make([]byte, 1)), "nothing was sent")
	sent := make([]byte, 60<<10)
	for available := 0; available == 0; {
		_, _ = rand.Read(sent)
		_, err := s.Write(sent)
		require.NoError(t, err)
		got, buf := []byte(nil), make([]byte, 16<<10)
		for len(got) < len(sent) {
			n, err := s.Read(buf)
			require.NoError(t, err)
			got = append(got, buf[:n]...)
			for n > 0 {
				n = s.ReadAvailable(buf)
				got = append(got, buf[:n]...)
				available += n
			}
		}
		require.True(t, bytes.Equal(sent, got))
	}
}

// A Read that reads the connection itself still ends with its stream, and the connection goes on.
func TestReadEndsWithItsStream(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*Stream) error
		want error
	}{
		"deadline": {
			end:  func(s *Stream) error { return s.SetReadDeadline(time.Now().Add(time.Millisecond)) },
			want: os.ErrDeadlineExceeded,
		},
		"close": {end: (*Stream).Close, want: net.ErrClosed},
		"abort": {end: (*Stream).Abort, want: net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			conn := newOpener(t, process(t, echo))
			for round := range 20 {
				s := openStream(t, conn)
				for range round {
					requireEcho(t, s, "hello")
				}
				failed := make(chan error, 1)
				go func() {
					_, err := s.Read(make([]byte, 1))
					failed <- err
				}()
				require.NoError(t, c.end(s))
				require.ErrorIs(t, <-failed, c.want)
				_ = s.Close()
			}
			requireEcho(t, openStream(t, conn), "the connection works")
		})
	}
}

// Idle sees the end of a stream before anybody has read it.
func TestIdleSeesTheEndOfTheStream(t *testing.T) {
	for name, secure := range map[string]bool{"TCP": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			if secure {
				a, b = withTLS(t, a, b)
			}
			end := make(chan struct{})
			c, _ := run(t, a, b, process(t, func(c *net.TCPConn) { _, _ = io.CopyN(c, c, 500); <-end }))
			s := openStream(t, c)
			for range 100 {
				requireEcho(t, s, "hello")
				idle, ended := s.Idle()
				require.True(t, idle)
				require.False(t, ended)
			}
			close(end)
			require.Eventually(t, func() bool {
				idle, ended := s.Idle()
				return !idle && ended
			}, patience, time.Millisecond)
			_, err := s.Read(make([]byte, 1))
			require.Equal(t, io.EOF, err)
		})
	}
}

// A process that reads nothing blocks its own stream only, and bounded memory waits for it.
func TestProcessThatReadsNothingBlocksItsOwnStreamOnly(t *testing.T) {
	proceed, first := make(chan struct{}), make(chan struct{}, 1)
	first <- struct{}{}
	c := newOpener(t, process(t, func(c *net.TCPConn) {
		select {
		case <-first:
			_ = c.SetReadBuffer(64 << 10) // bounds what the kernel takes
			<-proceed
			n, err := io.Copy(io.Discard, c)
			assert.NoError(t, err)
			_, _ = c.Write([]byte{byte(n % 251)})
		default:
			echo(c)
		}
	}))
	s := openStream(t, c)
	require.NoError(t, s.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	sent, err := s.Write(make([]byte, 64<<20))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Less(t, sent, 32<<20, "more than the kernel buffers and a window")
	requireEcho(t, openStream(t, c), "hello")
	close(proceed)
	require.NoError(t, s.CloseWrite())
	got, err := io.ReadAll(s)
	require.NoError(t, err)
	require.Equal(t, []byte{byte(sent % 251)}, got, "the process received every byte")
}

// A client that reads nothing blocks its own stream only.
func TestClientThatReadsNothingBlocksItsOwnStreamOnly(t *testing.T) {
	c := newOpener(t, process(t, echo))
	s := openStream(t, c)
	go func() { _, _ = s.Write(make([]byte, 8<<20)) }()
	requireEcho(t, openStream(t, c), "hello")
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.recv.window.open == 0
	}, patience, time.Millisecond)
	requireEcho(t, openStream(t, c), "hello")
	n, err := io.CopyN(io.Discard, s, 8<<20)
	require.NoError(t, err)
	require.EqualValues(t, 8<<20, n)
	require.NoError(t, s.Close())
}

func TestEndsReachTheOtherEnd(t *testing.T) {
	t.Run("the process resets", func(t *testing.T) {
		c := newOpener(t, process(t, func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 1)); _ = c.SetLinger(0) }))
		s := openStream(t, c)
		_, err := s.Write([]byte("x"))
		require.NoError(t, err)
		_, err = s.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Eventually(t, func() bool {
			_, err := s.Write([]byte("x"))
			return err != nil
		}, patience, time.Millisecond)
	})
	for name, c := range map[string]struct {
		end  func(*Stream) error
		want error
	}{
		"the client resets": {end: (*Stream).Abort, want: syscall.ECONNRESET},
		"the client closes": {end: (*Stream).Close, want: io.EOF},
		"the connection is lost": {
			end:  func(s *Stream) error { s.conn.fail(nil); return nil },
			want: syscall.ECONNRESET,
		},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			s := openStream(t, newOpener(t, process(t, func(c *net.TCPConn) {
				_, err := io.ReadFull(c, make([]byte, 2))
				ended <- err
			})))
			_, err := s.Write([]byte("x"))
			require.NoError(t, err)
			time.Sleep(time.Millisecond)
			require.NoError(t, c.end(s))
			err = <-ended
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = io.EOF
			}
			require.ErrorIs(t, err, c.want)
		})
	}
	t.Run("the client closes with unread bytes", func(t *testing.T) {
		ended := make(chan error, 1)
		s := openStream(t, newOpener(t, process(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("hello"))
			_, err := c.Read(make([]byte, 1))
			ended <- err
		})))
		require.Eventually(t, func() bool { idle, _ := s.Idle(); return !idle }, patience, time.Millisecond)
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	})
	t.Run("the peer closes in order", func(t *testing.T) {
		a, b := pair(t)
		c, accepting := run(t, a, b, process(t, echo))
		s := openStream(t, c)
		requireEcho(t, s, "hello")
		require.NoError(t, accepting.Close())
		_, err := s.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
		require.Eventually(t, func() bool {
			_, err := s.Write([]byte("x"))
			return err != nil
		}, patience, time.Millisecond)
	})
	t.Run("a retired connection ends with its last stream", func(t *testing.T) {
		c := newOpener(t, process(t, echo))
		s := openStream(t, c)
		c.Retire()
		requireEcho(t, s, "hello")
		_, err := c.Open(t.Context(), &agentv1.RelayHeader{})
		require.Error(t, err)
		require.NoError(t, s.Close())
		<-c.done
	})
}

func TestOpenReturnsAStreamOrAnError(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		c := newOpener(t, func(h *agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) {
			assert.Equal(t, "10.0.0.1:1", h.Source)
			return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
		})
		s, err := c.Open(t.Context(), &agentv1.RelayHeader{Source: "10.0.0.1:1"})
		require.Nil(t, s)
		var refused *RefusedError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, agentv1.RelayStatus_RELAY_STATUS_REFUSED, refused.Status)
		require.Zero(t, c.count())
	})
	t.Run("no answer in time", func(t *testing.T) {
		wait := make(chan struct{})
		accept := process(t, echo)
		c := newOpener(t, func(h *agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) { <-wait; return accept(h) })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := c.Open(ctx, &agentv1.RelayHeader{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		close(wait)
		requireEcho(t, openStream(t, c), "hello")
	})
	t.Run("the connection ends", func(t *testing.T) {
		wait := make(chan struct{})
		c := newOpener(t, func(*agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) { <-wait; return nil, 0 })
		time.AfterFunc(10*time.Millisecond, func() { c.fail(nil); close(wait) })
		_, err := c.Open(t.Context(), &agentv1.RelayHeader{})
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("too many streams", func(t *testing.T) {
		c := newOpener(t, process(t, echo))
		var all []*Stream
		for range maxStreams {
			all = append(all, openStream(t, c))
		}
		_, err := c.Open(t.Context(), &agentv1.RelayHeader{})
		require.ErrorIs(t, err, ErrTooManyStreams)
		require.NoError(t, all[0].Close())
		requireEcho(t, openStream(t, c), "hello")
	})
}

// A stream is active from a request until its process has sent nothing for a while after the
// answer.
func TestActiveStreams(t *testing.T) {
	t.Parallel()
	answers := make(chan struct{})
	a, b := pair(t)
	opens, accepts := run(t, a, b, process(t, func(c *net.TCPConn) {
		for got := make([]byte, 8); ; {
			if _, err := c.Read(got); err != nil {
				return
			}
			<-answers
			_, _ = c.Write([]byte("answer"))
		}
	}))
	s := openStream(t, opens)
	require.Zero(t, accepts.ActiveStreams(), "there was no request")
	for range 2 {
		_, err := s.Write([]byte("request!"))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return accepts.ActiveStreams() == 1 }, patience, time.Millisecond)
		require.Equal(t, 1, accepts.ActiveStreams(), "it still owes the answer")
		answers <- struct{}{}
		_, err = io.ReadFull(s, make([]byte, 6))
		require.NoError(t, err)
		require.Equal(t, 1, accepts.ActiveStreams(), "it has sent something since the last call")
		require.Zero(t, accepts.ActiveStreams(), "it has sent nothing since")
	}
}
