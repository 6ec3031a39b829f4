package agent

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/mux"
)

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, exchangeBuffer) }}

// link is one side: reading from it first sends on what was gathered for the other side.
type link struct {
	net.Conn
	r    *bufio.Reader // nil while nothing is expected
	in   prefixed
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
	l := &link{Conn: netx.Wrap(c)}
	l.w = &outlet{to: l.Conn}
	l.in = prefixed{link: l, first: first}
	l.wake()
	return l
}

// wake takes a buffer to read into.
func (l *link) wake() {
	if l.r == nil {
		l.r = readers.Get().(*bufio.Reader)
		l.r.Reset(&l.in)
	}
}

// rest gives it back if nothing is in it: most connections wait most of the time.
func (l *link) rest() {
	if l.r != nil && l.r.Buffered() == 0 {
		l.r.Reset(nil)
		readers.Put(l.r)
		l.r = nil
	}
}

// await waits, without a buffer, until there is something to read or the deadline has passed.
func (l *link) await() error {
	if l.r.Buffered() > 0 || len(l.in.first) > 0 {
		return nil
	}
	l.rest()
	defer l.wake()
	if c, ok := l.Conn.(*netx.Conn); ok {
		return c.WaitReadable()
	}
	first := make([]byte, 1)
	n, err := l.Read(first)
	l.in.first = first[:n]
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // what is wrong will be read again
	}
	return err
}

// prefixed reads what was read before, and then the connection.
type prefixed struct {
	*link
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		if p.first = p.first[n:]; len(p.first) == 0 {
			p.first = nil
		}
		return n, nil
	}
	if p.to != nil && p.to.w.n > 0 {
		if s, ok := p.Conn.(*mux.Stream); ok && p.to.w.n >= bulk {
			if n := s.ReadAvailable(b); n > 0 {
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
	if r, ok := c.(*relay.Conn); ok && r.RecordReady() {
		return false
	}
	switch s := netx.Below(c).(type) {
	case *mux.Stream:
		quiet, closed = s.Idle()
	case syscall.Conn:
		raw, err := s.SyscallConn()
		if err != nil {
			return false
		}
		if err := raw.Control(func(fd uintptr) {
			n, err := netx.Peek(fd, make([]byte, 1))
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
