package netx

import (
	"bufio"
	"bytes"
	"net"
)

// Below returns the connection that carries c: it follows NetConn until a connection has no such
// method. For TLS on a TCP connection that is the TCP connection; for a connection that carries
// itself it is c.
func Below(c net.Conn) net.Conn {
	for {
		upper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = upper.NetConn()
	}
}

// CloseWrite half-closes c: the peer reads the end of the stream and may still answer. It reports
// whether c supports that; if not, c stays as it is.
func CloseWrite(c net.Conn) bool {
	w, ok := c.(interface{ CloseWrite() error })
	if ok {
		_ = w.CloseWrite()
	}
	return ok
}

// Abort closes c with a reset, so that the peer can tell a connection that was cut from one that
// ended. The connection below c is reset first, because an orderly end of the layers above, such as
// a close_notify of TLS, would make the stream look complete. A connection that carries itself may
// reset itself with a method Abort.
func Abort(c net.Conn) {
	below := Below(c)
	switch b := below.(type) {
	case interface{ Abort() }:
		b.Abort()
	case interface{ Abort() error }:
		_ = b.Abort()
	case interface{ SetLinger(int) error }:
		_ = b.SetLinger(0)
	}
	_ = below.Close()
	_ = c.Close()
}

// PrefixedConn is a connection of which some bytes were already read: Read returns Prefix first. It
// is for one reader at a time, as Prefix is consumed without a lock.
type PrefixedConn struct {
	net.Conn
	Prefix []byte
}

// Read implements net.Conn.
func (c *PrefixedConn) Read(b []byte) (int, error) {
	if len(c.Prefix) > 0 {
		n := copy(b, c.Prefix)
		if c.Prefix = c.Prefix[n:]; len(c.Prefix) == 0 {
			c.Prefix = nil // the buffer can be freed
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

// NetConn returns the connection below.
func (c *PrefixedConn) NetConn() net.Conn { return c.Conn }

// Unbuffered returns c with the bytes in front that r, a reader of c, has read ahead. r must not be
// used any more.
func Unbuffered(c net.Conn, r *bufio.Reader) *PrefixedConn {
	ahead, _ := r.Peek(r.Buffered()) // cannot fail: that many bytes are there
	return &PrefixedConn{Conn: c, Prefix: bytes.Clone(ahead)}
}

// As returns the first connection of type T among c and the connections below it, and whether there
// is one.
func As[T any](c net.Conn) (T, bool) {
	for {
		if t, ok := c.(T); ok {
			return t, true
		}
		upper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			var none T
			return none, false
		}
		c = upper.NetConn()
	}
}
