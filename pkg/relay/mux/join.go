package mux

import (
	"net"

	"github.com/detour-dev/detour/pkg/netx"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// join answers that the stream is open, and connects it to local until both have ended.
func (s *Stream) join(local net.Conn) {
	defer s.conn.forget(s)
	defer local.Close()
	s.mu.Lock()
	s.local = local
	cut := s.err != nil
	s.mu.Unlock()
	if cut || s.conn.say(s.id, answer, []byte{byte(agentv1.RelayStatus_RELAY_STATUS_OK)}) != nil {
		netx.Abort(local)
		return
	}
	s.mu.Lock()
	s.drain() // what was not to be sent yet
	s.mu.Unlock()
	if err := netx.Copy(s, local); err != nil || s.isDeaf() {
		_ = s.Abort()
	} else {
		_ = s.CloseWrite()
	}
	s.mu.Lock()
	for !s.fin && s.err == nil {
		s.readable.Wait()
	}
	s.mu.Unlock()
	s.drained.Wait()
}

// ActiveStreams counts the streams on which something is under way: the local process owes an answer, or has said something since the last call.
func (c *Conn) ActiveStreams() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		if spoke := s.spoke.Swap(false); spoke || s.asked.Load() {
			n++
		}
	}
	return n
}

// pass writes to local what that takes without waiting, and returns the rest; mu is held.
func (s *Stream) pass(b []byte) (rest []byte, err error) {
	some, ok := s.local.(interface{ TryWrite([]byte) (int, error) })
	if !ok {
		return b, nil
	}
	n, err := some.TryWrite(b)
	if n == len(b) {
		s.took(n)
	} else {
		s.credits.taken += n
	}
	return b[n:], err
}

// drain has a goroutine write what waits to a local process that does not take all at once; mu is held.
func (s *Stream) drain() {
	if s.local == nil || s.draining || s.parts.len() == 0 && !s.fin {
		return
	}
	s.draining = true
	s.drained.Go(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for s.parts.len() > 0 && s.err == nil {
			p := s.parts.pop()
			s.mu.Unlock()
			_, err := s.local.Write(p.b[p.from:p.to])
			partPool.Put(p.b)
			s.mu.Lock()
			s.took(p.to - p.from)
			if err != nil {
				s.deafen()
			}
		}
		s.draining = false
		if s.fin && s.err == nil && !s.deaf {
			netx.CloseWrite(s.local)
		}
	})
}

// deafen is when the local process takes nothing any more; mu is held. It may have answered before it closed, so the stream goes on until that
// has been read.
func (s *Stream) deafen() {
	s.deaf = true
	s.parts.drop()
}

func (s *Stream) isDeaf() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deaf
}
