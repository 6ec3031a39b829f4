//go:build linux

package passthrough

import (
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// outOfDescriptors is the pause after an accept that failed for want of descriptors or memory: those who wait keep waiting.
const outOfDescriptors = 10 * time.Millisecond

// accept joins a new client to the app, or gives it away. It takes one at a time, so that the loops share them, and says whether there was
// one.
func (l *loop) accept(listener *socket) bool {
	fd, _, err := unix.Accept4(listener.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch err { //nolint:errorlint // an errno as it is
	case nil:
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		time.Sleep(outOfDescriptors)
		return false
	default:
		return false
	}
	if l.config.Owner(listener.port) == Elsewhere {
		l.give(fd, Handover{Port: listener.port})
		return true
	}
	p := &pair{port: listener.port}
	p.client = socket{fd: fd, pair: p, peer: &p.app}
	p.app = socket{fd: -1, pair: p, peer: &p.client}
	l.pairs++
	l.connect(p)
	return true
}

// connect dials the app on the address that the client used: it may not listen on any other.
func (l *loop) connect(p *pair) {
	refuse := func() { l.refused(p) }
	local, err := unix.Getsockname(p.client.fd)
	if err != nil {
		refuse()
		return
	}
	family := unix.AF_INET
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		a.Port = int(p.port)
	case *unix.SockaddrInet6:
		if mapped := netip.AddrFrom16(a.Addr); mapped.Is4In6() {
			local = &unix.SockaddrInet4{Port: int(p.port), Addr: mapped.Unmap().As4()}
		} else {
			a.Port = int(p.port)
			family = unix.AF_INET6
		}
	default:
		refuse()
		return
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		refuse()
		return
	}
	p.app.fd = fd
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	err = unix.Connect(fd, local)
	if err == unix.EINPROGRESS { //nolint:errorlint // an errno as it is
		p.app.connecting = true
		if l.watch(&p.app, unix.EPOLLOUT) != nil {
			refuse()
		}
		return
	}
	if err != nil || l.watch(&p.app, unix.EPOLLIN) != nil || l.watch(&p.client, unix.EPOLLIN) != nil {
		refuse()
	}
}

// refused is a client whose app does not accept. The handshake is done, so a refusal becomes a reset, unless a laptop may want its requests.
func (l *loop) refused(p *pair) {
	if l.config.Owner(p.port) == ByRequest {
		if p.app.fd >= 0 {
			l.forget(&p.app)
			_ = unix.Close(p.app.fd)
			p.app.fd = -1
		}
		l.handOver(p, nil)
		return
	}
	l.end(p, true)
}

// connected is the end of a dial that took its time.
func (l *loop) connected(app *socket) {
	code, err := unix.GetsockoptInt(app.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	app.connecting = false
	if err != nil || code != 0 || l.watch(app.peer, unix.EPOLLIN) != nil {
		l.refused(app.pair)
		return
	}
	l.want(app)
}

// read carries what s says to its peer.
func (l *loop) read(s *socket) {
	p := s.pair
	if s.bulk >= bulkAfter {
		l.splice(s)
		return
	}
	for range readsMax {
		n, err := readRaw(s.fd, l.buffer)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR: //nolint:errorlint // an errno as it is
			return
		case err != nil:
			l.end(p, true)
			return
		case n == 0:
			l.ended(s)
			return
		}
		b := l.buffer[:n]
		if s == &p.client {
			switch l.pass(p, b) {
			case toApp:
				if p.greeting != nil && !l.greet(p) {
					return
				}
			case away:
				l.handOver(p, b)
				return
			case hold:
				p.held = append([]byte(nil), b...)
				l.want(s)
				return
			}
		} else {
			if l.early(p, b) {
				p.greeting = append([]byte(nil), b...)
				l.want(s)
				return
			}
			p.http.appSaid(b)
			if p.http.protocol == sniff.HTTP2 {
				// Frames are followed, so never spliced.
				if !l.writeFrames(p, b) || n < len(l.buffer) || p.client.full() {
					return
				}
				continue
			}
		}
		if !l.write(s.peer, b) || !l.release(p) || !l.ask(p) {
			return
		}
		if n < len(l.buffer) {
			s.bulk = 0
			return // all was read
		}
		if p.http.answers != nil { // followed, so never spliced
			if s.peer.full() {
				return
			}
			continue
		}
		if s.bulk++; s.bulk >= bulkAfter || s.peer.full() {
			return // the rest comes by splice, or the peer has to take it first
		}
	}
}

// greet lets the client have what the app said first. It says whether the pair lives.
func (l *loop) greet(p *pair) bool {
	b := p.greeting
	p.greeting = nil
	p.http.appSaid(b)
	alive := false
	if p.http.protocol == sniff.HTTP2 {
		alive = l.writeFrames(p, b)
	} else {
		alive = l.write(&p.client, b)
	}
	if alive {
		l.want(&p.app)
	}
	return alive
}

// write gives b to s, and keeps what it does not take. It says whether the pair lives.
func (l *loop) write(s *socket, b []byte) bool {
	if s.full() { // what came before goes first
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
			l.want(s)
			l.want(s.peer)
			return true
		}
		if err != nil {
			l.end(s.pair, true)
			return false
		}
		b = b[n:]
	}
	return true
}

// writeFrames gives the client what the app says in HTTP/2, and asks it to leave where that is due. It says whether the pair lives.
func (l *loop) writeFrames(p *pair, b []byte) bool {
	end := p.http.frames.Feed(b)
	if p.http.leave != due || end < 0 {
		return l.write(&p.client, b)
	}
	p.http.leave = asked
	return l.write(&p.client, b[:end]) && l.write(&p.client, sniff.Goaway) && l.write(&p.client, b[end:])
}

// review asks the clients of HTTP/2 connections to leave that now belong elsewhere.
func (l *loop) review() {
	for _, s := range l.sockets {
		if s == nil || s.pair == nil || s != &s.pair.client {
			continue
		}
		p := s.pair
		if p.http.protocol != sniff.HTTP2 || p.http.leave != stay || l.config.Owner(p.port) == App {
			continue
		}
		p.http.leave = due
		l.ask(p)
	}
}

// ask asks the client to leave when that is due and nothing stands in the way. It says whether the pair lives.
func (l *loop) ask(p *pair) bool {
	if p.http.leave != due || !p.http.frames.Between() {
		return true
	}
	p.http.leave = asked
	return l.write(&p.client, sniff.Goaway)
}

// flush writes what was kept. It says whether the pair lives.
func (l *loop) flush(s *socket) bool {
	b := s.pending
	s.pending = nil
	if !l.write(s, b) || !l.drain(s) || !l.release(s.pair) {
		return false
	}
	if !s.full() && s.peer.eof {
		return l.shut(s)
	}
	l.want(s)
	l.want(s.peer)
	return true
}

// ended passes the end of what s says on.
func (l *loop) ended(s *socket) {
	s.eof = true
	if s == &s.pair.client && s.pair.greeting != nil && !l.greet(s.pair) {
		return
	}
	if s.pair.held != nil {
		l.end(s.pair, true) // in the middle of an answer
		return
	}
	if !s.peer.full() && !l.shut(s.peer) {
		return
	}
	l.want(s)
}

// shut half-closes s, whose peer has no more to say. It says whether the pair lives.
func (l *loop) shut(s *socket) bool {
	if s.eof && !s.peer.full() {
		l.end(s.pair, false)
		return false
	}
	if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil {
		l.end(s.pair, true)
		return false
	}
	l.want(s)
	return true
}

// quiet says whether nothing of the app's is on its way to the client.
func (l *loop) quiet(p *pair) bool {
	unread, err := unix.IoctlGetInt(p.app.fd, unix.TIOCINQ)
	return err == nil && unread == 0 && !p.client.full() && !p.app.full()
}

// handOver gives the client away between two requests. Where the app may still be wanted its connection goes along; otherwise it
// sees it close.
func (l *loop) handOver(p *pair, first []byte) {
	var app *net.TCPConn
	if p.app.fd >= 0 && !p.app.eof && !p.app.connecting && p.greeting == nil && l.config.Owner(p.port) == ByRequest {
		l.forget(&p.app)
		app = conn(p.app.fd)
		p.app.fd = -1
	}
	fd := p.client.fd
	l.forget(&p.client)
	p.client.fd = -1
	l.end(p, false)
	h := Handover{
		Port: p.port, App: app, Used: p.http.used, First: append([]byte(nil), first...),
		Head: p.http.head, Choice: p.http.choice,
	}
	if h.Head != nil {
		h.Head.Raw = h.First[:len(h.Head.Raw)] // it was part of the loop's buffer
	}
	l.give(fd, h)
}

// give hands a client's socket away.
func (l *loop) give(fd int, h Handover) {
	if h.Client = conn(fd); h.Client != nil {
		l.config.Take(h)
	} else if h.App != nil {
		_ = h.App.Close()
	}
}

// conn hands a socket to Go's poller; nil when that cannot be, and then the socket is closed.
func conn(fd int) *net.TCPConn {
	file := os.NewFile(uintptr(fd), "connection")
	c, err := net.FileConn(file) // duplicates
	if err != nil {
		linger(fd)
	}
	_ = file.Close()
	if err != nil {
		return nil
	}
	return c.(*net.TCPConn)
}
