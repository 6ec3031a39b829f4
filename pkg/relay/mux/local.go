package mux

import (
	"net"
	"sync"

	"github.com/detour-dev/detour/pkg/netx"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// localSide is the connection of an accepted stream to the local process. Stream.mu guards it.
type localSide struct {
	conn     net.Conn // nil until it is dialled, and always at the end that opens streams
	draining bool     // a goroutine writes the queued bytes to conn
	closed   bool     // conn takes nothing any more
	drained  sync.WaitGroup
}

// join answers that the stream is open, and connects it to local until both have ended. It closes
// local.
func (s *Stream) join(local net.Conn) {
	defer s.conn.remove(s)
	defer local.Close()
	s.mu.Lock()
	s.local.conn = local
	cut := s.recv.err != nil
	s.mu.Unlock()
	if cut || s.conn.sendControl(s.id, kindAnswer, []byte{byte(agentv1.RelayStatus_RELAY_STATUS_OK)}) != nil {
		netx.Abort(local)
		return
	}
	s.mu.Lock()
	s.drainLocked() // bytes that arrived before local was dialled
	s.mu.Unlock()
	if err := netx.Copy(s, local); err != nil || s.localClosed() {
		_ = s.Abort()
	} else {
		_ = s.CloseWrite()
	}
	s.mu.Lock()
	for !s.recv.fin && s.recv.err == nil {
		s.recv.readable.Wait()
	}
	s.mu.Unlock()
	s.local.drained.Wait()
}

// ActiveStreams returns the number of streams whose local process owes an answer, or has sent
// something since the last call.
func (c *Conn) ActiveStreams() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		if sent := s.sent.Swap(false); sent || s.owesAnswer.Load() {
			n++
		}
	}
	return n
}

// passLocked writes as much of b to the local process as that takes without waiting, and returns
// the rest.
func (s *Stream) passLocked(b []byte) (rest []byte, err error) {
	local, ok := s.local.conn.(interface{ TryWrite([]byte) (int, error) })
	if !ok {
		return b, nil
	}
	n, err := local.TryWrite(b)
	if n == len(b) {
		s.consumedLocked(n)
	} else {
		s.recv.window.consumed += n
	}
	return b[n:], err
}

// drainLocked starts a goroutine that writes the queued bytes to a local process that does not take
// all of them at once. The goroutine of join waits for it.
func (s *Stream) drainLocked() {
	if s.local.conn == nil || s.local.draining || s.recv.queue.len() == 0 && !s.recv.fin {
		return
	}
	s.local.draining = true
	s.local.drained.Go(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for s.recv.queue.len() > 0 && s.recv.err == nil {
			chunk := s.recv.queue.pop()
			s.mu.Unlock()
			_, err := s.local.conn.Write(chunk.b[chunk.from:chunk.to])
			chunkPool.Put(chunk.b)
			s.mu.Lock()
			s.consumedLocked(chunk.to - chunk.from)
			if err != nil {
				s.closeLocalLocked()
			}
		}
		s.local.draining = false
		if s.recv.fin && s.recv.err == nil && !s.local.closed {
			netx.CloseWrite(s.local.conn)
		}
	})
}

// closeLocalLocked notes that the local process takes nothing any more. It may have answered before
// it closed, so the stream goes on until that answer has been read.
func (s *Stream) closeLocalLocked() {
	s.local.closed = true
	s.recv.queue.drop()
}

func (s *Stream) localClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.local.closed
}
