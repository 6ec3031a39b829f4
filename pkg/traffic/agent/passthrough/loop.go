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
	batch      = 128 // events taken at once
	readsMax   = 8   // buffers read from a socket before others get their turn
)

// loop is one thread's connections. Only its thread touches it once it runs.
type loop struct {
	config Config
	epoll  int
	wake   int // eventfd, written by stop and changed
	buffer []byte
	// sockets by descriptor. The generation tells an event of a socket that was closed in the same batch from one of the socket
	// that has its descriptor now.
	sockets    []*socket
	generation int32
	pairs      int // that are open
	stopping   atomic.Bool
	finishing  atomic.Bool // nothing new is taken
	stopped    bool
	pipes      []*pipe
	gain       spin.Policy
}

// socket is a listener, or one end of a pair.
type socket struct {
	fd         int
	generation int32
	events     uint32 // what epoll was asked for
	port       uint16 // of the app, when this is a listener
	pair       *pair  // nil for a listener
	peer       *socket
	pending    []byte // what it could not take yet
	pipe       *pipe  // what it could not take yet of a bulk transfer to it; nil when there is none
	eof        bool   // it has no more to say
	bulk       int    // how many full buffers it said in a row
	connecting bool
	paused     bool // out of epoll until its peer has taken what is pending
}

// pair is a client's connection and the app's.
type pair struct {
	client, app socket
	port        uint16
	ended       bool
	http        httpState
	held        []byte // what the client said that is to be given away; until it is, the client is not heard
	greeting    []byte // what the app said before the client had said anything; until then the app is not heard
}

func newLoop(c Config) (l *loop, err error) {
	l = &loop{config: c, epoll: -1, wake: -1, buffer: make([]byte, bufferSize)}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	if err := l.watch(&socket{fd: l.wake}, unix.EPOLLIN); err != nil {
		return nil, fmt.Errorf("watch the eventfd: %w", err)
	}
	for port, listener := range c.Listeners {
		fd, err := descriptor(listener)
		if err != nil {
			return nil, err
		}
		// Of all loops one is woken for a connection.
		if err := l.watch(&socket{fd: fd, port: port}, unix.EPOLLIN|unix.EPOLLEXCLUSIVE); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("watch the listener: %w", err)
		}
	}
	return l, nil
}

// watch begins to hear of a socket.
func (l *loop) watch(s *socket, events uint32) error {
	for s.fd >= len(l.sockets) {
		l.sockets = append(l.sockets, make([]*socket, 64)...)
	}
	l.generation++
	s.generation, s.events = l.generation, events
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: events, Fd: int32(s.fd), Pad: s.generation}); err != nil {
		return err
	}
	l.sockets[s.fd] = s
	return nil
}

// want changes what is heard of a socket.
func (l *loop) want(s *socket) {
	var events uint32
	if !s.eof && !s.connecting && !s.peer.full() && (s.pair.held == nil || s == &s.pair.app) && (s.pair.greeting == nil || s == &s.pair.client) {
		events |= unix.EPOLLIN
	}
	if s.connecting || s.full() {
		events |= unix.EPOLLOUT
	}
	if s.paused && events != 0 {
		s.paused = false
		if err := l.watch(s, events); err != nil {
			l.end(s.pair, true)
		}
		return
	}
	if events == s.events || s.paused {
		return
	}
	s.events = events
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, s.fd, &unix.EpollEvent{Events: events, Fd: int32(s.fd), Pad: s.generation})
}

// stop, finish and changed are called by others than the loop's thread.
func (l *loop) stop() {
	l.stopping.Store(true)
	l.changed()
}

func (l *loop) finish() {
	l.finishing.Store(true)
	l.changed()
}

func (l *loop) changed() { _, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// close frees what the loop holds. It does not run any more.
func (l *loop) close() {
	for _, s := range l.sockets {
		if s == nil {
			continue
		}
		if s.pair != nil {
			linger(s.fd)
		}
		l.putPipe(s)
		_ = unix.Close(s.fd)
	}
	l.sockets = nil
	for _, p := range l.pipes {
		p.close()
	}
	l.pipes = nil
	if l.epoll >= 0 {
		_ = unix.Close(l.epoll)
		l.epoll = -1
	}
}

func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	events := make([]unix.EpollEvent, batch)
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

// wait waits for events, and looks for them for a moment where that pays.
func (l *loop) wait(events []unix.EpollEvent) (int, error) {
	if l.gain.ShouldSpin() {
		for range spin.Iterations {
			n, err := pollRaw(l.epoll, events)
			if n != 0 || err != nil {
				l.gain.Record(true)
				return n, err
			}
			yieldRaw()
		}
		l.gain.Record(false)
	}
	return unix.EpollWait(l.epoll, events, -1)
}

func (l *loop) handle(e *unix.EpollEvent) {
	s := l.sockets[e.Fd]
	switch {
	case s == nil || s.generation != e.Pad:
	case s.fd == l.wake:
		_, _ = readRaw(l.wake, l.buffer[:8])
		if l.stopping.Load() {
			l.stopped = true
			return
		}
		l.review()
	case s.pair == nil:
		l.accept(s)
	default:
		l.serve(s, e.Events)
	}
}

// serve moves what can be moved after an event of s.
func (l *loop) serve(s *socket, events uint32) {
	if s.connecting {
		l.connected(s)
		return
	}
	if events&unix.EPOLLOUT != 0 && !l.flush(s) {
		return
	}
	switch {
	case s.events&unix.EPOLLIN != 0 && events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0:
		l.read(s)
	case events&(unix.EPOLLHUP|unix.EPOLLERR) != 0:
		l.broken(s)
	}
}

// broken ends a pair of which a socket failed: what was a reset stays one. A socket that is only closed both ways may hold bytes
// that its peer has no room for yet; epoll would report it over and over, so it leaves until then.
func (l *loop) broken(s *socket) {
	if code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		l.end(s.pair, true)
		return
	}
	s.paused = true
	l.forget(s)
}

// closeListeners takes what waits at the listeners, and then nothing more.
func (l *loop) closeListeners() {
	for fd, s := range l.sockets {
		if s == nil || s.pair != nil || s.fd == l.wake {
			continue
		}
		for l.accept(s) {
		}
		l.sockets[fd] = nil
		_ = unix.Close(fd)
	}
}

// end closes a pair, with a reset to both when it did not end in order.
func (l *loop) end(p *pair, reset bool) {
	if !p.ended {
		p.ended = true
		l.pairs--
	}
	for _, s := range []*socket{&p.client, &p.app} {
		if s.fd < 0 {
			continue
		}
		if reset {
			linger(s.fd)
		}
		if s.fd < len(l.sockets) && l.sockets[s.fd] == s {
			l.sockets[s.fd] = nil
		}
		l.putPipe(s)
		_ = unix.Close(s.fd) // which takes it out of epoll
		s.fd = -1
	}
}

// forget stops hearing of a socket.
func (l *loop) forget(s *socket) {
	if s.fd < len(l.sockets) && l.sockets[s.fd] == s {
		l.sockets[s.fd] = nil
		_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, s.fd, nil)
	}
}

// linger makes the closing of a socket a reset.
func linger(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
