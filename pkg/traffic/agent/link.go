package agent

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/socket"
	"github.com/detour-dev/detour/pkg/traffic/mux"
	"github.com/detour-dev/detour/pkg/traffic/relay"
)

// link is one side: reading from it first sends on what was gathered for the other side.
type link struct {
	net.Conn
	r    *bufio.Reader
	w    *outlet
	to   *link // who gets what is read here
	used bool
	// keeps is set while what is sent is kept as well: then it is no reason to read no more that the connection is lost.
	keeps bool
	// forget is set where the connection ends with a context.
	forget func() bool
}

func (l *link) Close() error {
	if l.forget != nil {
		l.forget()
	}
	return l.Conn.Close()
}

func newLink(c net.Conn, first []byte) *link {
	l := &link{Conn: socket.New(c)}
	l.w = &outlet{to: l.Conn, small: make([]byte, exchangeBuffer)}
	l.r = bufio.NewReaderSize(&prefixed{link: l, first: first}, exchangeBuffer)
	return l
}

// prefixed reads what was read before, and then the connection.
type prefixed struct {
	*link
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	if p.to != nil && p.to.w.n > 0 {
		if s, ok := p.Conn.(*mux.Stream); ok && p.to.w.n >= bulk {
			if n := s.ReadNow(b); n > 0 {
				return n, nil // which leaves with the rest
			}
		}
		if err := p.to.w.Flush(); err != nil && !p.to.keeps {
			return 0, err
		}
	}
	return p.Conn.Read(b)
}

// alive says whether a connection on which nothing is expected is neither closed nor has something come.
func alive(c net.Conn) bool {
	var quiet, closed bool
	if r, ok := c.(*relay.Conn); ok && r.Waiting() {
		return false
	}
	switch s := bottom(c).(type) {
	case *mux.Stream:
		quiet, closed = s.Quiet()
	case syscall.Conn:
		raw, err := s.SyscallConn()
		if err != nil {
			return false
		}
		if err := raw.Control(func(fd uintptr) {
			n, err := socket.Peek(fd, make([]byte, 1))
			quiet, closed = errors.Is(err, syscall.EAGAIN), err == nil && n == 0
		}); err != nil {
			return false
		}
	default:
		return true
	}
	if quiet || closed {
		return quiet
	}
	switch c.(type) {
	case *tls.Conn, *relay.Conn:
	default:
		return false
	}
	// TLS has things of its own to say, such as tickets, which only it can tell from the other side's.
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	n, err := c.Read(make([]byte, 1))
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}
