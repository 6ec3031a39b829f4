package vif

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

// visitors opens streams to a hub that say nothing, and counts those that are still open.
func visitors(t *testing.T, hub *Hub, count int) (open func() int) {
	t.Helper()
	var serving sync.WaitGroup
	var left atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); serving.Wait() })
	for range count {
		_, theirs := kernelPair(t)
		left.Add(1)
		serving.Go(func() { defer left.Add(-1); _ = hub.ServeStream(ctx, theirs) })
	}
	return func() int { return int(left.Load()) }
}

func (a *strangers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

// Anybody in the cluster can open streams. Those that say nothing cost little, are few, and end; a laptop's stays.
func TestStrangersComeToNothing(t *testing.T) {
	key, err := NewPrivateKey()
	require.NoError(t, err)
	hub := newHub(t, key, 0, key.PublicKey())
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	open := visitors(t, hub, 3*maxStrangers)
	require.Eventually(t, func() bool { return open() == maxStrangers }, patience, 10*time.Millisecond, "the oldest go")
	hub.bind.strangers.mu.Lock()
	defer hub.bind.strangers.mu.Unlock()
	for _, s := range hub.bind.strangers.all {
		require.Len(t, s.chunk(nil).buf, strangerChunk, "none has a laptop's buffers")
	}
}

func TestStrangersHaveLittleTime(t *testing.T) {
	key, err := NewPrivateKey()
	require.NoError(t, err)
	hub := newHub(t, key, 0, key.PublicKey())
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	hub.bind.strangers.within = 10 * time.Millisecond
	open := visitors(t, hub, 5)
	require.Eventually(t, func() bool { return open() == 0 }, patience, 10*time.Millisecond)
	require.Zero(t, hub.bind.strangers.count())
}

func TestALaptopIsNoStranger(t *testing.T) {
	hub, _, _ := pair(t)
	require.Eventually(t, func() bool { return hub.bind.strangers.count() == 0 }, patience, 10*time.Millisecond)
	_, theirs := kernelPair(t)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- hub.ServeStream(ctx, theirs) }()
	require.Eventually(t, func() bool { return hub.bind.strangers.count() == 1 }, patience, 10*time.Millisecond)
	c, err := dialFromLaptop("tcp", echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	flowing(t, c)
	stop()
	<-served
	require.Zero(t, hub.bind.strangers.count())
}

// A stranger may say anything, in any pieces.
func TestStrangersMessages(t *testing.T) {
	for _, size := range []int{0, 1, strangerChunk - frameHeader, strangerChunk, maxMessage} {
		near, far := net.Pipe()
		frame := appendFrame(appendFrame(nil, make([]byte, size)), []byte("end"))
		var got []int
		var reading sync.WaitGroup
		reading.Go(func() {
			_ = newStream("in", far).readLoop(nil, nil, func(c *chunk) bool {
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

// inPieces gives what there is in pieces of 1000 bytes.
type inPieces struct{ left []byte }

func (p *inPieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.left[:min(len(p.left), 1000)])
	p.left = p.left[n:]
	return n, nil
}
