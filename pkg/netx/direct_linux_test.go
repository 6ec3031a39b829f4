package netx

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns the two ends of a connection over loopback.
func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	accepted, err := l.Accept()
	require.NoError(t, err)
	a, b = Wrap(dialled).(*Conn), Wrap(accepted).(*Conn)
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// All bytes arrive both ways at once although both readers are slow, and a half-close ends each
// direction.
func TestConnCarriesAllBytesBothWays(t *testing.T) {
	a, b := pair(t)
	require.NoError(t, a.SetWriteBuffer(4<<10))
	require.NoError(t, b.SetWriteBuffer(4<<10))
	sent := make([]byte, 5<<20)
	_, _ = rand.Read(sent)
	var both sync.WaitGroup
	for from, to := range map[*Conn]*Conn{a: b, b: a} {
		both.Go(func() {
			n, err := from.Write(sent)
			if err != nil || n != len(sent) {
				t.Errorf("wrote %d: %v", n, err)
			}
			_ = from.CloseWrite()
		})
		both.Go(func() {
			got, err := io.ReadAll(to)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("read %d: %v", len(got), err)
			}
		})
	}
	both.Wait()
	n, err := a.Read(make([]byte, 1))
	require.Zero(t, n)
	require.Equal(t, io.EOF, err)
}

func TestReadEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(a, b *Conn)
		want error
	}{
		"at its deadline": {
			end:  func(a, _ *Conn) { _ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) },
			want: os.ErrDeadlineExceeded,
		},
		"when it is closed":    {end: func(a, _ *Conn) { _ = a.Close() }, want: net.ErrClosed},
		"when the peer closes": {end: func(_, b *Conn) { _ = b.Close() }, want: io.EOF},
		"when the peer resets": {end: func(_, b *Conn) { Abort(b) }, want: syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			failed := make(chan error, 1)
			go func() {
				_, err := a.Read(make([]byte, 1))
				failed <- err
			}()
			c.end(a, b)
			require.ErrorIs(t, <-failed, c.want)
		})
	}
}

func TestWriteEndsAtItsDeadlineAndAtAReset(t *testing.T) {
	a, b := pair(t)
	require.NoError(t, a.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
	n, err := a.Write(make([]byte, 64<<20)) // more than the kernel buffers
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Less(t, n, 64<<20)
	require.NoError(t, a.SetWriteDeadline(time.Time{}))
	require.NoError(t, b.SetLinger(0))
	require.NoError(t, b.Close())
	for err = nil; err == nil; {
		_, err = a.Write(make([]byte, 1<<20))
	}
	require.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), err)
}

func TestWrapReturnsOtherConnectionsAsTheyAre(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	require.Equal(t, a, Wrap(a))
	c, _ := pair(t)
	require.Equal(t, net.Conn(c), Wrap(c), "a Conn is not wrapped again")
}

// TryWrite writes what the socket has room for.
func TestTryWriteDoesNotWaitForRoom(t *testing.T) {
	a, b := pair(t)
	require.NoError(t, b.SetReadBuffer(64<<10))
	sent := make([]byte, 64<<20)
	_, _ = rand.Read(sent[:1<<20])
	n, err := a.TryWrite(sent)
	require.NoError(t, err)
	require.Positive(t, n)
	require.Less(t, n, len(sent))
	got := make([]byte, n)
	_, err = io.ReadFull(b, got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent[:n], got))
	require.NoError(t, a.Close())
	_, err = a.TryWrite(sent)
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestPeekRemovesNothing(t *testing.T) {
	a, b := pair(t)
	peek := func() (n int, err error) {
		raw, rerr := a.SyscallConn()
		require.NoError(t, rerr)
		require.NoError(t, raw.Control(func(fd uintptr) { n, err = Peek(fd, make([]byte, 1)) }))
		return n, err
	}
	_, err := peek()
	require.ErrorIs(t, err, syscall.EAGAIN)
	_, err = b.Write([]byte("hello"))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		n, err := peek()
		return n == 1 && err == nil
	}, 10*time.Second, time.Millisecond)
	got := make([]byte, 5)
	_, err = io.ReadFull(a, got)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got), "Peek removed nothing")
}

// WaitReadable removes nothing, and ends with bytes, with the end of the stream and with the
// deadline.
func TestWaitReadable(t *testing.T) {
	c, peer := pair(t)
	woken := make(chan error, 1)
	wait := func() { go func() { woken <- c.WaitReadable() }() }
	wait()
	_, err := peer.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, <-woken)
	require.NoError(t, c.WaitReadable(), "the byte was not removed")
	n, err := c.Read(make([]byte, 10))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	wait()
	require.NoError(t, c.SetReadDeadline(time.Now()))
	require.ErrorIs(t, <-woken, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetReadDeadline(time.Time{}))
	wait()
	require.NoError(t, peer.CloseWrite())
	require.NoError(t, <-woken)
	_, err = c.Read(make([]byte, 10))
	require.ErrorIs(t, err, io.EOF)
}
