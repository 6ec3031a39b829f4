//go:build linux

package passthrough

import (
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// read reads from s and passes the bytes to its peer, until s has no more or others need their
// turn.
func (l *loop) read(s *socket) {
	if s.fullReads >= bulkAfter {
		l.splice(s)
		return
	}
	for range readsMax {
		n, err := readRaw(s.fd, l.buffer)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR: //nolint:errorlint // an errno as it is
			return
		case err != nil:
			l.closePair(s.pair, true)
			return
		case n == 0:
			l.onEOF(s)
			return
		}
		more := false
		if s == &s.pair.client {
			more = l.forwardClient(s.pair, l.buffer[:n])
		} else {
			more = l.forwardApp(s.pair, l.buffer[:n])
		}
		if !more {
			return
		}
	}
}

// forwardClient does with b, which the client sent, what its verdict says. It reports whether to
// read on.
func (l *loop) forwardClient(p *pair, b []byte) bool {
	switch l.classify(p, b) {
	case verdictHandOver:
		l.handOver(p, b)
		return false
	case verdictHold:
		p.heldRequest = append([]byte(nil), b...)
		l.updateInterest(&p.client)
		return false
	}
	if p.preface != nil && !l.releasePreface(p) {
		return false
	}
	return l.forward(&p.client, b)
}

// forwardApp passes b, which the app sent, to the client, or holds it if it is a preface. It
// reports whether to read on.
func (l *loop) forwardApp(p *pair, b []byte) bool {
	if l.holdsPreface(p, b) {
		p.preface = append([]byte(nil), b...)
		l.updateInterest(&p.app)
		return false
	}
	p.http.feedApp(b)
	if p.http.protocol == sniff.HTTP2 {
		// The loop follows the frames, so it never splices them.
		return l.writeFrames(p, b) && len(b) == len(l.buffer) && !p.client.hasBacklog()
	}
	return l.forward(&p.app, b)
}

// forward passes b, which was read from s, to its peer. It reports whether to read on.
func (l *loop) forward(s *socket, b []byte) bool {
	p := s.pair
	if !l.write(s.peer, b) || !l.releaseRequest(p) || !l.sendGoaway(p) {
		return false
	}
	if len(b) < len(l.buffer) { // s has no more
		s.fullReads = 0
		return false
	}
	if p.http.answers != nil { // the loop follows the answers, so it never splices them
		return !s.peer.hasBacklog()
	}
	s.fullReads++
	return s.fullReads < bulkAfter && !s.peer.hasBacklog()
}

// write writes b to s. It keeps the part that s has no room for in s.pending. It reports whether
// the pair is still open.
func (l *loop) write(s *socket, b []byte) bool {
	if s.hasBacklog() { // earlier bytes go first
		s.pending = append(s.pending, b...)
		return true
	}
	for len(b) > 0 {
		n, err := writeRaw(s.fd, b)
		if err == unix.EINTR { //nolint:errorlint // an errno as it is
			continue
		}
		if err == unix.EAGAIN { //nolint:errorlint // an errno as it is
			s.pending = append(s.pending, b...)
			l.updateInterest(s)
			l.updateInterest(s.peer)
			return true
		}
		if err != nil {
			l.closePair(s.pair, true)
			return false
		}
		b = b[n:]
	}
	return true
}

// flush writes the backlog of s. It reports whether the pair is still open.
func (l *loop) flush(s *socket) bool {
	b := s.pending
	s.pending = nil
	if !l.write(s, b) || !l.drain(s) || !l.releaseRequest(s.pair) {
		return false
	}
	if !s.hasBacklog() && s.peer.eof {
		return l.shutdownWrite(s)
	}
	l.updateInterest(s)
	l.updateInterest(s.peer)
	return true
}

// onEOF handles the end of the bytes from s, and passes it on to its peer.
func (l *loop) onEOF(s *socket) {
	s.eof = true
	if s == &s.pair.client && s.pair.preface != nil && !l.releasePreface(s.pair) {
		return
	}
	if s.pair.heldRequest != nil {
		l.closePair(s.pair, true) // in the middle of an answer
		return
	}
	if !s.peer.hasBacklog() && !l.shutdownWrite(s.peer) {
		return
	}
	l.updateInterest(s)
}

// shutdownWrite half-closes s, because its peer sends no more. It reports whether the pair is still
// open.
func (l *loop) shutdownWrite(s *socket) bool {
	if s.eof && !s.peer.hasBacklog() {
		l.closePair(s.pair, false)
		return false
	}
	if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil {
		l.closePair(s.pair, true)
		return false
	}
	l.updateInterest(s)
	return true
}
