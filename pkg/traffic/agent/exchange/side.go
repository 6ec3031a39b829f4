package exchange

import (
	"bufio"
	"errors"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/relay/mux"
)

// bulkSize is how many bytes are gathered for a client before the agent waits for what its laptop
// has sent already.
const bulkSize = smallBuffer / 2

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, smallBuffer) }}

// side is one side of an exchange: a connection with buffers. To read from one side first sends
// what was gathered for the other. A side that waits holds no buffer.
type side struct {
	net.Conn
	r    *bufio.Reader // nil while nothing is expected
	in   prefixed
	w    *pooledWriter
	to   *side // gets what is read here
	used bool  // it has served a request
	// readsOn is set while what is sent is kept as well: then a lost connection is no reason to
	// stop reading.
	readsOn bool
	// stop is set where the connection ends with a context, and forgets that.
	stop func() bool
}

// newSide returns a side of a connection of which first was already read. The side owns the
// connection.
func newSide(c net.Conn, first []byte) *side {
	s := &side{Conn: netx.Wrap(c)}
	s.w = &pooledWriter{to: s.Conn}
	s.in = prefixed{side: s, first: first}
	s.takeBuffer()
	return s
}

// Close closes the connection.
func (s *side) Close() error {
	if s.stop != nil {
		s.stop()
	}
	return s.Conn.Close()
}

// detach returns the connection, which the side no longer owns.
func (s *side) detach() net.Conn {
	if s.stop != nil {
		s.stop()
	}
	if c, ok := s.Conn.(*netx.Conn); ok {
		return c.NetConn()
	}
	return s.Conn
}

// unread takes what was read of the connection and nobody has used.
func (s *side) unread() []byte {
	var b []byte
	if s.r != nil {
		buffered, _ := s.r.Peek(s.r.Buffered())
		b = slices.Clone(buffered)
		_, _ = s.r.Discard(len(b))
	}
	b = append(b, s.in.first...)
	s.in.first = nil
	return b
}

// takeBuffer takes a buffer to read into.
func (s *side) takeBuffer() {
	if s.r == nil {
		s.r = readers.Get().(*bufio.Reader)
		s.r.Reset(&s.in)
	}
}

// releaseBuffer gives the buffer back if nothing is in it: most connections wait most of the time.
func (s *side) releaseBuffer() {
	if s.r != nil && s.r.Buffered() == 0 {
		s.r.Reset(nil)
		readers.Put(s.r)
		s.r = nil
	}
}

// await waits, without a buffer, until there is something to read or the deadline has passed.
func (s *side) await() error {
	if s.r.Buffered() > 0 || len(s.in.first) > 0 {
		return nil
	}
	s.releaseBuffer()
	defer s.takeBuffer()
	if c, ok := s.Conn.(*netx.Conn); ok {
		return c.WaitReadable()
	}
	first := make([]byte, 1)
	n, err := s.Read(first)
	s.in.first = first[:n]
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // the next read returns the error again
	}
	return err
}

// prefixed reads what was read before, and then the connection.
type prefixed struct {
	*side
	first []byte
}

// Read implements io.Reader.
func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		if p.first = p.first[n:]; len(p.first) == 0 {
			p.first = nil
		}
		return n, nil
	}
	if p.to != nil && p.to.w.Buffered() > 0 {
		if s, ok := p.Conn.(*mux.Stream); ok && p.to.w.Buffered() >= bulkSize {
			if n := s.ReadAvailable(b); n > 0 {
				return n, nil // it is sent with the rest
			}
		}
		if err := p.to.w.Flush(); err != nil && !p.to.readsOn {
			return 0, err
		}
	}
	return p.Conn.Read(b)
}
