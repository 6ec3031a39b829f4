package transport

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// silentStreams opens streams that send nothing, and counts those that are still open.
func silentStreams(t *testing.T, bind *bind, count int) (open func() int) {
	t.Helper()
	var serving sync.WaitGroup
	var streams atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); serving.Wait() })
	for range count {
		_, theirs := sockets(t)
		streams.Add(1)
		serving.Go(func() { defer streams.Add(-1); _ = bind.serve(ctx, theirs, nil) })
	}
	return func() int { return int(streams.Load()) }
}

// Anybody in the cluster can open a stream. Streams that send nothing use little memory, are few,
// and end.
func TestUnauthenticatedStreamsAreBounded(t *testing.T) {
	bind := newBind(nil, nil)
	open := silentStreams(t, bind, 3*maxUnauthStreams)
	require.Eventually(
		t,
		func() bool { return open() == maxUnauthStreams },
		timeout,
		10*time.Millisecond,
		"the oldest streams end",
	)
	bind.unauth.mu.Lock()
	defer bind.unauth.mu.Unlock()
	for _, s := range bind.unauth.all {
		require.Len(t, s.chunk(nil).buf, unauthChunk, "no such stream has a laptop's buffer")
	}
}

func TestUnauthenticatedStreamsTimeOut(t *testing.T) {
	bind := newBind(nil, nil)
	bind.unauth.timeout = 10 * time.Millisecond
	open := silentStreams(t, bind, 5)
	require.Eventually(t, func() bool { return open() == 0 }, timeout, 10*time.Millisecond)
	require.Zero(t, bind.unauth.count())
}

// An unknown peer may send any messages, however they are cut.
func TestUnauthenticatedStreamsMayCutMessagesAnyhow(t *testing.T) {
	for _, size := range []int{0, 1, unauthChunk - FrameHeader, unauthChunk, MaxMessage} {
		near, far := net.Pipe()
		frame := appendFrame(appendFrame(nil, make([]byte, size)), []byte("end"))
		var got []int
		var reading sync.WaitGroup
		reading.Go(func() {
			_ = newStreamWire("in", far).readLoop(nil, nil, func(c *chunk) bool {
				for _, m := range c.messages {
					got = append(got, len(m))
				}
				return true
			})
		})
		_, err := io.Copy(near, &inPieces{frame})
		require.NoError(t, err)
		require.NoError(t, near.Close())
		reading.Wait()
		require.Equal(t, []int{size, 3}, got)
		require.NoError(t, far.Close())
	}
}

// inPieces returns its bytes in reads of at most 1000.
type inPieces struct{ rest []byte }

func (p *inPieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(len(p.rest), 1000)])
	p.rest = p.rest[n:]
	return n, nil
}
