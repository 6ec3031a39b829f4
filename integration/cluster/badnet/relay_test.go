package badnet_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/detour-dev/detour/integration/cluster/badnet"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// patience is for what must happen, however busy the machine is.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers every connection with f, until the test ends.
func serve(t *testing.T, f func(*net.TCPConn)) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go f(conn.(*net.TCPConn))
		}
	}()
	return listener.Addr().String()
}

func echo(conn *net.TCPConn) {
	defer conn.Close()
	_, _ = io.Copy(conn, conn)
}

func relay(t *testing.T, target string) *badnet.Relay {
	r, err := badnet.Listen(t.Context(), "127.0.0.1:0", target)
	require.NoError(t, err)
	t.Cleanup(r.Close)
	return r
}

func dial(t *testing.T, r *badnet.Relay) *net.TCPConn {
	conn, err := net.Dial("tcp", r.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn.(*net.TCPConn)
}

// exchange sends a message and waits until it has come back.
func exchange(t *testing.T, conn net.Conn, message []byte) time.Duration {
	start := time.Now()
	_, err := conn.Write(message)
	require.NoError(t, err)
	answer := make([]byte, len(message))
	_, err = io.ReadFull(conn, answer)
	require.NoError(t, err)
	require.True(t, bytes.Equal(message, answer), "the answer is not the message")
	return time.Since(start)
}

// silent checks that nothing comes, neither bytes nor an end.
func silent(t *testing.T, conn net.Conn) {
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	n, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Zero(t, n)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
}

func random(t *testing.T, n int) []byte {
	data := make([]byte, n)
	_, err := rand.Read(data)
	require.NoError(t, err)
	return data
}

func TestEverythingPassesBothWaysAndSoDoesTheEnd(t *testing.T) {
	conn := dial(t, relay(t, serve(t, echo)))
	message := random(t, 5<<20)
	go func() {
		_, _ = conn.Write(message)
		_ = conn.CloseWrite()
	}()
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.True(t, bytes.Equal(message, answer), "the answer is not the message")
}

func TestDelayMakesTheRoundTripLonger(t *testing.T) {
	r := relay(t, serve(t, echo))
	conn := dial(t, r)
	exchange(t, conn, []byte("quick"))
	r.Delay(150 * time.Millisecond)
	require.GreaterOrEqual(t, exchange(t, conn, []byte("slow")), 150*time.Millisecond)
	require.GreaterOrEqual(t, exchange(t, dial(t, r), []byte("slow too")), 150*time.Millisecond)
}

func TestDelayedMessagesAreOnTheirWayTogether(t *testing.T) {
	r := relay(t, serve(t, echo))
	r.Delay(200 * time.Millisecond)
	conn := dial(t, r)
	const messages = 100
	go func() {
		for range messages {
			_, _ = conn.Write([]byte("x"))
			time.Sleep(time.Millisecond)
		}
	}()
	start := time.Now()
	_, err := io.ReadFull(conn, make([]byte, messages))
	require.NoError(t, err)
	require.Less(t, time.Since(start), messages*200*time.Millisecond/2)
}

func TestRateLimitsEachDirectionForAllConnectionsTogether(t *testing.T) {
	r := relay(t, serve(t, func(conn *net.TCPConn) {
		defer conn.Close()
		_, _ = conn.Write(make([]byte, 64<<10))
	}))
	r.Rate(8 * 128 << 10) // 128 KiB a second
	start := time.Now()
	read := make(chan error, 2)
	for range 2 {
		conn := dial(t, r)
		go func() {
			n, err := io.Copy(io.Discard, conn)
			if n != 64<<10 {
				err = errors.Join(err, io.ErrUnexpectedEOF)
			}
			read <- err
		}()
	}
	require.NoError(t, <-read)
	require.NoError(t, <-read)
	require.GreaterOrEqual(t, time.Since(start), 990*time.Millisecond)
}

func TestAnotherRateIsForWhatWaitsToo(t *testing.T) {
	r := relay(t, serve(t, echo))
	conn := dial(t, r)
	exchange(t, conn, []byte("quick"))
	r.Rate(1)
	_, err := conn.Write([]byte("this takes minutes"))
	require.NoError(t, err)
	silent(t, conn)
	r.Rate(0)
	answer := make([]byte, len("this takes minutes"))
	_, err = io.ReadFull(conn, answer)
	require.NoError(t, err)
	require.Equal(t, "this takes minutes", string(answer))
}

func TestStallPassesNothingUntilItEnds(t *testing.T) {
	r := relay(t, serve(t, echo))
	old := dial(t, r)
	exchange(t, old, []byte("before"))
	r.Stall(true)
	fresh := dial(t, r)
	for _, conn := range []*net.TCPConn{old, fresh} {
		_, err := conn.Write([]byte("held"))
		require.NoError(t, err)
		require.NoError(t, conn.CloseWrite())
		silent(t, conn)
	}
	r.Stall(false)
	for _, conn := range []*net.TCPConn{old, fresh} {
		answer, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Equal(t, "held", string(answer))
	}
}

func TestAStalledSenderHasToWait(t *testing.T) {
	r := relay(t, serve(t, echo))
	r.Stall(true)
	conn := dial(t, r)
	require.NoError(t, conn.SetWriteDeadline(time.Now().Add(2*time.Second)))
	block, sent := make([]byte, 1<<20), 0
	for sent < 1<<30 {
		n, err := conn.Write(block)
		sent += n
		if err != nil {
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			break
		}
	}
	require.Less(t, sent, 256<<20, "all that fits between the two is buffers of the kernel and 4 MiB")
}

func TestCutResetsBothSidesAndServesNewConnections(t *testing.T) {
	for _, stalled := range []bool{false, true} {
		ends := make(chan error, 1)
		r := relay(t, serve(t, func(conn *net.TCPConn) {
			defer conn.Close()
			_, err := io.Copy(conn, conn)
			ends <- err
		}))
		conn := dial(t, r)
		exchange(t, conn, []byte("before"))
		r.Stall(stalled)
		r.Cut()
		_, err := conn.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.ErrorIs(t, <-ends, syscall.ECONNRESET)
		r.Stall(false)
		exchange(t, dial(t, r), []byte("after"))
	}
}

func TestAResetOfOneSideReachesTheOther(t *testing.T) {
	r := relay(t, serve(t, func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0)
		_ = conn.Close()
	}))
	conn := dial(t, r)
	_, err := conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestAClientOfAnAbsentTargetIsReset(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := listener.Addr().String()
	require.NoError(t, listener.Close())
	conn, err := net.Dial("tcp", relay(t, nobody).Addr())
	if err == nil { // else it was reset before it was noticed as open
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		_, err = conn.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestCloseLeavesNothingRunning(t *testing.T) {
	var handlers sync.WaitGroup
	resume := make(chan struct{})
	target := serve(t, func(conn *net.TCPConn) { // reads nothing at first, so that the relay blocks in a write
		handlers.Add(1)
		defer handlers.Done()
		defer conn.Close()
		<-resume
		_, _ = io.Copy(io.Discard, conn)
	})
	before := goleak.IgnoreCurrent()
	r, err := badnet.Listen(t.Context(), "127.0.0.1:0", target)
	require.NoError(t, err)
	idle, blocked := dial(t, r), dial(t, r)
	written := make(chan error)
	go func() {
		_, err := blocked.Write(make([]byte, 256<<20))
		written <- err
	}()
	time.Sleep(200 * time.Millisecond)
	r.Close()
	require.Error(t, <-written)
	_, err = idle.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = net.Dial("tcp", r.Addr())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	close(resume)
	handlers.Wait()
	goleak.VerifyNone(t, before)
	r.Close() // again
}

func TestTheRelayEndsWithItsContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	r, err := badnet.Listen(ctx, "127.0.0.1:0", serve(t, echo))
	require.NoError(t, err)
	conn := dial(t, r)
	exchange(t, conn, []byte("before"))
	stop()
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	r.Close()
}
