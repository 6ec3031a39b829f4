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

const (
	patience = 30 * time.Second
	ok       = agentv1.RelayStatus_RELAY_STATUS_OK
)

// pair is two ends of a TCP connection over loopback.
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

// secured puts TLS on a pair.
func secured(t testing.TB, a, b net.Conn) (net.Conn, net.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"manager"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return relay.Client(a, &tls.Config{RootCAs: pool, ServerName: "manager"}), relay.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
}

// process is a local process: what handle does with each of its connections.
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
		return c, ok
	}
}

// run makes the two ends of a and b, and ends them with the test.
func run(t testing.TB, a, b net.Conn, accept Accept) (opens, accepts *Conn) {
	opens, accepts = New(a, nil), New(b, accept)
	var running sync.WaitGroup
	running.Go(func() { _ = opens.Run() })
	running.Go(func() { _ = accepts.Run() })
	t.Cleanup(func() { opens.fail(nil); running.Wait() })
	return opens, accepts
}

// joined is an end that opens streams to accept.
func joined(t testing.TB, accept Accept) *Conn {
	a, b := pair(t)
	opens, _ := run(t, a, b, accept)
	return opens
}

func stream(t testing.TB, c *Conn) *Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := c.Open(ctx, &agentv1.RelayHeader{Source: "10.0.0.1:1"})
	require.NoError(t, err)
	require.NoError(t, s.SetDeadline(time.Now().Add(patience)))
	return s
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, struct{ io.Reader }{c}) }

// says asks the echo, and requires its answer.
func says(t testing.TB, s *Stream, what string) {
	t.Helper()
	_, err := s.Write([]byte(what))
	require.NoError(t, err)
	got := make([]byte, len(what))
	_, err = io.ReadFull(s, got)
	require.NoError(t, err)
	require.Equal(t, what, string(got))
}

func (c *Conn) open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// Many streams at once carry much both ways, with half-closes, and nothing of one comes out of another.
func TestAllArrives(t *testing.T) {
	for name, secure := range map[string]bool{"TCP": false, "TLS": true} {
		for _, count := range []int{1, 20} {
			t.Run(name, func(t *testing.T) {
				a, b := pair(t)
				if secure {
					a, b = secured(t, a, b)
				}
				c, there := run(t, a, b, process(t, echo))
				var all sync.WaitGroup
				for range count {
					all.Go(func() {
						s := stream(t, c)
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
				for _, end := range []*Conn{c, there} {
					require.Eventually(t, func() bool { return end.open() == 0 }, patience, time.Millisecond)
					end.mu.Lock()
					assert.Zero(t, end.grown)
					end.mu.Unlock()
				}
			})
		}
	}
}

// Small messages go to and fro, alone and beside others: who reads changes all the time.
func TestWhoReads(t *testing.T) {
	c := joined(t, process(t, echo))
	first := stream(t, c)
	for range 2 {
		for range 200 {
			says(t, first, "alone")
		}
		time.Sleep(3 * leadFor) // the goroutine reads again
		var all sync.WaitGroup
		for range 8 {
			s := stream(t, c)
			all.Go(func() {
				defer s.Close()
				for range 200 {
					says(t, s, "together")
				}
			})
		}
		for range 200 {
			says(t, first, "with others")
		}
		all.Wait()
	}
}

// What can be read without waiting is what comes next, and is had at some time.
func TestReadAvailable(t *testing.T) {
	a, b := pair(t)
	a, b = secured(t, a, b)
	c, _ := run(t, a, b, process(t, echo))
	s := stream(t, c)
	require.Zero(t, s.ReadAvailable(make([]byte, 1)), "nothing was asked")
	sent := make([]byte, 60<<10)
	for had := 0; had == 0; {
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
				had += n
			}
		}
		require.True(t, bytes.Equal(sent, got))
	}
}

// What ends a Read ends it also where that reads the connection itself, and the others go on.
func TestReadsThatEnd(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*Stream) error
		want error
	}{
		"deadline": {func(s *Stream) error { return s.SetReadDeadline(time.Now().Add(time.Millisecond)) }, os.ErrDeadlineExceeded},
		"close":    {func(s *Stream) error { return s.Close() }, net.ErrClosed},
		"abort":    {func(s *Stream) error { return s.Abort() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			conn := joined(t, process(t, echo))
			for round := range 20 {
				s := stream(t, conn)
				for range round {
					says(t, s, "hello")
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
			says(t, stream(t, conn), "still there")
		})
	}
}

// Idle sees an end that nobody has read.
func TestIdle(t *testing.T) {
	for name, secure := range map[string]bool{"TCP": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			if secure {
				a, b = secured(t, a, b)
			}
			leave := make(chan struct{})
			c, _ := run(t, a, b, process(t, func(c *net.TCPConn) { _, _ = io.CopyN(c, c, 500); <-leave }))
			s := stream(t, c)
			for range 100 {
				says(t, s, "hello")
				quiet, ended := s.Idle()
				require.True(t, quiet)
				require.False(t, ended)
			}
			close(leave)
			require.Eventually(t, func() bool { quiet, ended := s.Idle(); return !quiet && ended }, patience, time.Millisecond)
			_, err := s.Read(make([]byte, 1))
			require.Equal(t, io.EOF, err)
		})
	}
}

// A process that takes nothing stops its own stream only, and what waits for it is bounded.
func TestProcessThatStandsStill(t *testing.T) {
	still, first := make(chan struct{}), make(chan struct{}, 1)
	first <- struct{}{}
	c := joined(t, process(t, func(c *net.TCPConn) {
		select {
		case <-first:
			_ = c.SetReadBuffer(64 << 10) // and no more
			<-still
			n, err := io.Copy(io.Discard, c)
			assert.NoError(t, err)
			_, _ = c.Write([]byte{byte(n % 251)})
		default:
			echo(c)
		}
	}))
	s := stream(t, c)
	require.NoError(t, s.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	sent, err := s.Write(make([]byte, 64<<20))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Less(t, sent, 32<<20, "what the kernel keeps, and a window")
	says(t, stream(t, c), "hello")
	close(still)
	require.NoError(t, s.CloseWrite())
	got, err := io.ReadAll(s)
	require.NoError(t, err)
	require.Equal(t, []byte{byte(sent % 251)}, got, "nothing is lost of what was sent")
}

// A client that takes nothing stops its own stream only.
func TestClientThatStandsStill(t *testing.T) {
	c := joined(t, process(t, echo))
	s := stream(t, c)
	go func() { _, _ = s.Write(make([]byte, 8<<20)) }()
	says(t, stream(t, c), "hello")
	require.Eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.credits.left == 0 }, patience, time.Millisecond)
	says(t, stream(t, c), "hello")
	n, err := io.CopyN(io.Discard, s, 8<<20)
	require.NoError(t, err)
	require.EqualValues(t, 8<<20, n)
	require.NoError(t, s.Close())
}

func TestEnds(t *testing.T) {
	t.Run("the process resets", func(t *testing.T) {
		c := joined(t, process(t, func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 1)); _ = c.SetLinger(0) }))
		s := stream(t, c)
		_, err := s.Write([]byte("x"))
		require.NoError(t, err)
		_, err = s.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Eventually(t, func() bool { _, err := s.Write([]byte("x")); return err != nil }, patience, time.Millisecond)
	})
	for name, c := range map[string]struct {
		end  func(*Stream) error
		want error
	}{
		"the client resets": {(*Stream).Abort, syscall.ECONNRESET},
		"the client closes": {(*Stream).Close, io.EOF},
		"the client is cut": {func(s *Stream) error { s.conn.fail(nil); return nil }, syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			s := stream(t, joined(t, process(t, func(c *net.TCPConn) {
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
	t.Run("closed with something unread", func(t *testing.T) {
		ended := make(chan error, 1)
		s := stream(t, joined(t, process(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("hello"))
			_, err := c.Read(make([]byte, 1))
			ended <- err
		})))
		require.Eventually(t, func() bool { quiet, _ := s.Idle(); return !quiet }, patience, time.Millisecond)
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	})
	t.Run("the other end closes in order", func(t *testing.T) {
		a, b := pair(t)
		c, there := run(t, a, b, process(t, echo))
		s := stream(t, c)
		says(t, s, "hello")
		require.NoError(t, there.Close())
		_, err := s.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
		require.Eventually(t, func() bool { _, err := s.Write([]byte("x")); return err != nil }, patience, time.Millisecond)
	})
	t.Run("retired", func(t *testing.T) {
		c := joined(t, process(t, echo))
		s := stream(t, c)
		c.Retire()
		says(t, s, "hello")
		_, err := c.Open(t.Context(), &agentv1.RelayHeader{})
		require.Error(t, err)
		require.NoError(t, s.Close())
		<-c.done
	})
}

func TestOpen(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		c := joined(t, func(h *agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) {
			assert.Equal(t, "10.0.0.1:1", h.Source)
			return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
		})
		s, err := c.Open(t.Context(), &agentv1.RelayHeader{Source: "10.0.0.1:1"})
		require.Nil(t, s)
		var refused *RefusedError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, agentv1.RelayStatus_RELAY_STATUS_REFUSED, refused.Status)
		require.Zero(t, c.open())
	})
	t.Run("silence", func(t *testing.T) {
		wait := make(chan struct{})
		accept := process(t, echo)
		c := joined(t, func(h *agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) { <-wait; return accept(h) })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := c.Open(ctx, &agentv1.RelayHeader{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		close(wait)
		says(t, stream(t, c), "hello")
	})
	t.Run("the connection ends", func(t *testing.T) {
		wait := make(chan struct{})
		c := joined(t, func(*agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) { <-wait; return nil, 0 })
		time.AfterFunc(10*time.Millisecond, func() { c.fail(nil); close(wait) })
		_, err := c.Open(t.Context(), &agentv1.RelayHeader{})
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("too many", func(t *testing.T) {
		c := joined(t, process(t, echo))
		var all []*Stream
		for range maxStreams {
			all = append(all, stream(t, c))
		}
		_, err := c.Open(t.Context(), &agentv1.RelayHeader{})
		require.ErrorIs(t, err, ErrTooManyStreams)
		require.NoError(t, all[0].Close())
		says(t, stream(t, c), "hello")
	})
}

// A stream is at work from its first question until its process has been quiet since the answer.
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
	s := stream(t, opens)
	require.Zero(t, accepts.ActiveStreams(), "nobody was asked")
	for range 2 {
		_, err := s.Write([]byte("question"))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return accepts.ActiveStreams() == 1 }, patience, time.Millisecond)
		require.Equal(t, 1, accepts.ActiveStreams(), "however often it is looked")
		answers <- struct{}{}
		_, err = io.ReadFull(s, make([]byte, 6))
		require.NoError(t, err)
		require.Equal(t, 1, accepts.ActiveStreams(), "it has just said something")
		require.Zero(t, accepts.ActiveStreams(), "it is quiet")
	}
}
