//go:build linux

package passthrough

import (
	"net"
	"os"
)

// handOver hands over the client of a pair between two requests. If some requests may still be for
// the app, its connection goes with the client. Otherwise the connection to the app is closed.
func (l *loop) handOver(p *pair, first []byte) {
	var app *net.TCPConn
	if p.app.fd >= 0 && !p.app.eof && !p.app.connecting && p.preface == nil &&
		l.config.Policy(p.port) == ByRequest {
		l.unregister(&p.app)
		app = newTCPConn(p.app.fd)
		p.app.fd = -1
	}
	fd := p.client.fd
	l.unregister(&p.client)
	p.client.fd = -1
	l.closePair(p, false)
	h := Handover{
		Port: p.port, App: app, Used: p.http.used, First: append([]byte(nil), first...),
		Head: p.http.head, Choice: p.http.choice,
	}
	if h.Head != nil {
		h.Head.Raw = h.First[:len(h.Head.Raw)] // before, it was part of the loop's buffer
	}
	l.deliver(fd, h)
}

// deliver passes the socket of a client to Config.HandOver.
func (l *loop) deliver(fd int, h Handover) {
	if h.Client = newTCPConn(fd); h.Client != nil {
		l.config.HandOver(h)
	} else if h.App != nil {
		_ = h.App.Close()
	}
}

// newTCPConn moves a socket to Go's poller. If that fails, it resets the connection and returns
// nil.
func newTCPConn(fd int) *net.TCPConn {
	file := os.NewFile(uintptr(fd), "connection")
	c, err := net.FileConn(file) // has a duplicate of the descriptor
	if err != nil {
		resetOnClose(fd)
	}
	_ = file.Close()
	if err != nil {
		return nil
	}
	return c.(*net.TCPConn)
}
