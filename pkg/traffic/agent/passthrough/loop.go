//go:build linux

package passthrough

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/netx/spin"
)

const (
	bufferSize = 64 << 10
	eventsMax  = 128 // events of one epoll_wait
	readsMax   = 8   // buffers read from a socket before the other sockets get their turn
)

// loop serves the connections of one thread. While it runs, only its thread uses it, except for the
// methods stop, finish and wake.
type loop struct {
	config  Config
	epollFD int
	wakeFD  int // an eventfd, written by stop, finish and wake
	buffer  []byte
	// sockets are the registered sockets by descriptor. If a socket is closed in a batch of events,
	// a new socket may have its descriptor in the same batch. The generation tells their events
	// apart.
	sockets    []*socket
	generation int32
	pairs      int         // open pairs
	stopping   atomic.Bool // the loop ends at the next event
	finishing  atomic.Bool // the loop accepts no more clients and ends with its last pair
	stopped    bool
	pipes      []*pipe // empty pipes to use again
	spinPolicy spin.Policy
}

// socket is a listener, one end of a pair, or the eventfd.
type socket struct {
	fd         int
	generation int32
	events     uint32 // the events that epoll reports
	port       uint16 // the app's port, for a listener
	pair       *pair  // nil for a listener
	peer       *socket
	pending    []byte // bytes to it that it had no room for
	pipe       *pipe  // spliced bytes to it; nil when nothing is spliced to it
	eof        bool   // it sends no more
	fullReads  int    // consecutive reads from it that filled the buffer
	connecting bool
	paused     bool // not registered until its peer has taken the pending bytes
}

// pair is the connection of a client and the connection to the app.
type pair struct {
	client, app socket
	port        uint16
	closed      bool
	http        httpState
	// heldRequest is a request to hand over. While it is set, the loop does not read from the
	// client.
	heldRequest []byte
	// preface is what an HTTP/2 app sent before the client sent anything. While it is set, the loop
	// does not read from the app.
	preface []byte
}

// newLoop returns a loop that is ready to run. It duplicates the descriptors of the listeners; the
// caller still owns the listeners. The caller calls close after run has returned.
func newLoop(c Config) (l *loop, err error) {
	l = &loop{config: c, epollFD: -1, wakeFD: -1, buffer: make([]byte, bufferSize)}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.epollFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create an epoll instance: %w", err)
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("create an eventfd: %w", err)
	}
	if err := l.register(&socket{fd: l.wakeFD}, unix.EPOLLIN); err != nil {
		return nil, fmt.Errorf("watch the eventfd: %w", err)
	}
	for port, listener := range c.Listeners {
		fd, err := duplicateListener(listener)
		if err != nil {
			return nil, err
		}
		// EPOLLEXCLUSIVE: a connection wakes only one of the loops.
		if err := l.register(&socket{fd: fd, port: port}, unix.EPOLLIN|unix.EPOLLEXCLUSIVE); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("watch the listener: %w", err)
		}
	}
	return l, nil
}

// register adds a socket to epoll.
func (l *loop) register(s *socket, events uint32) error {
	for s.fd >= len(l.sockets) {
		l.sockets = append(l.sockets, make([]*socket, 64)...)
	}
	l.generation++
	s.generation, s.events = l.generation, events
	if err := l.control(unix.EPOLL_CTL_ADD, s); err != nil {
		return err
	}
	l.sockets[s.fd] = s
	return nil
}

// control tells epoll to report s.events of s.
func (l *loop) control(operation int, s *socket) error {
	e := unix.EpollEvent{Events: s.events, Fd: int32(s.fd), Pad: s.generation}
	return unix.EpollCtl(l.epollFD, operation, s.fd, &e)
}

// unregister removes a socket from epoll.
func (l *loop) unregister(s *socket) {
	if s.fd < len(l.sockets) && l.sockets[s.fd] == s {
		l.sockets[s.fd] = nil
		_ = unix.EpollCtl(l.epollFD, unix.EPOLL_CTL_DEL, s.fd, nil)
	}
}

// updateInterest makes epoll report what the loop can now do with a socket of a pair.
func (l *loop) updateInterest(s *socket) {
	var events uint32
	if s.canRead() {
		events |= unix.EPOLLIN
	}
	if s.connecting || s.hasBacklog() {
		events |= unix.EPOLLOUT
	}
	if s.paused && events != 0 {
		s.paused = false
		if err := l.register(s, events); err != nil {
			l.closePair(s.pair, true)
		}
		return
	}
	if events == s.events || s.paused {
		return
	}
	s.events = events
	_ = l.control(unix.EPOLL_CTL_MOD, s)
}

// canRead reports whether the loop may read from a socket of a pair.
func (s *socket) canRead() bool {
	if s.eof || s.connecting || s.peer.hasBacklog() {
		return false
	}
	if s == &s.pair.client {
		return s.pair.heldRequest == nil
	}
	return s.pair.preface == nil
}

// hasBacklog reports whether s must take bytes before the loop may read more from its peer.
func (s *socket) hasBacklog() bool {
	return len(s.pending) > 0 || s.pipe != nil && s.pipe.buffered > 0
}

// stop ends run. Any goroutine may call it.
func (l *loop) stop() {
	l.stopping.Store(true)
	l.wake()
}

// finish makes the loop accept no more clients and end with its last pair. Any goroutine may call
// it.
func (l *loop) finish() {
	l.finishing.Store(true)
	l.wake()
}

// wake makes the loop look at the policies, stopping and finishing. Any goroutine may call it.
func (l *loop) wake() { _, _ = unix.Write(l.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// close frees what the loop holds, and resets the open connections. Run must have returned.
func (l *loop) close() {
	for _, s := range l.sockets {
		if s == nil {
			continue
		}
		if s.pair != nil {
			resetOnClose(s.fd)
		}
		l.putPipe(s)
		_ = unix.Close(s.fd)
	}
	l.sockets = nil
	for _, p := range l.pipes {
		p.close()
	}
	l.pipes = nil
	if l.epollFD >= 0 {
		_ = unix.Close(l.epollFD)
		l.epollFD = -1
	}
}

// run serves connections until stop is called, or until the last pair ends after finish was called.
func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	events := make([]unix.EpollEvent, eventsMax)
	for !l.stopped {
		n, err := l.wait(events)
		if err != nil && err != unix.EINTR { //nolint:errorlint // an errno as it is
			return
		}
		for i := range max(n, 0) {
			l.handle(&events[i])
		}
		if l.finishing.Load() {
			l.closeListeners()
			l.stopped = l.stopped || l.pairs == 0
		}
	}
}

// wait waits for events. Where that pays, it polls for a moment before it sleeps (see package
// spin).
func (l *loop) wait(events []unix.EpollEvent) (int, error) {
	if l.spinPolicy.ShouldSpin() {
		for range spin.Iterations {
			n, err := pollRaw(l.epollFD, events)
			if n != 0 || err != nil {
				l.spinPolicy.Record(true)
				return n, err
			}
			yieldRaw()
		}
		l.spinPolicy.Record(false)
	}
	return unix.EpollWait(l.epollFD, events, -1)
}

// handle handles one event. It ignores an event of a socket that is closed already.
func (l *loop) handle(e *unix.EpollEvent) {
	s := l.sockets[e.Fd]
	switch {
	case s == nil || s.generation != e.Pad:
	case s.fd == l.wakeFD:
		_, _ = readRaw(l.wakeFD, l.buffer[:8])
		if l.stopping.Load() {
			l.stopped = true
			return
		}
		l.reviewHTTP2()
	case s.pair == nil:
		l.accept(s)
	default:
		l.handlePair(s, e.Events)
	}
}

// handlePair handles an event of a socket of a pair.
func (l *loop) handlePair(s *socket, events uint32) {
	if s.connecting {
		l.onConnected(s)
		return
	}
	if events&unix.EPOLLOUT != 0 && !l.flush(s) {
		return
	}
	switch {
	case s.events&unix.EPOLLIN != 0 && events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0:
		l.read(s)
	case events&(unix.EPOLLHUP|unix.EPOLLERR) != 0:
		l.onHangup(s)
	}
}

// onHangup handles a socket that failed or that is closed in both directions. If it failed, the
// pair ends, and a reset stays a reset.
//
// If it is only closed, it may hold bytes that its peer has no room for yet. Epoll would report it
// again and again, so it is not registered until the peer has room.
func (l *loop) onHangup(s *socket) {
	if code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		l.closePair(s.pair, true)
		return
	}
	s.paused = true
	l.unregister(s)
}

// closePair closes both connections of a pair, with a reset if reset is set: then the pair did not
// end in order.
func (l *loop) closePair(p *pair, reset bool) {
	if !p.closed {
		p.closed = true
		l.pairs--
	}
	for _, s := range []*socket{&p.client, &p.app} {
		if s.fd < 0 {
			continue
		}
		if reset {
			resetOnClose(s.fd)
		}
		if s.fd < len(l.sockets) && l.sockets[s.fd] == s {
			l.sockets[s.fd] = nil
		}
		l.putPipe(s)
		_ = unix.Close(s.fd) // also removes it from epoll
		s.fd = -1
	}
}

// resetOnClose makes the close of a socket send a reset.
func resetOnClose(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
