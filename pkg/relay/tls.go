package relay

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
)

// Conn is a TLS connection that reads and writes several records with one system call. See
// records.go.
type Conn struct {
	*tls.Conn
	records *records

	// writing is held by a Write of more than one record.
	writing sync.Mutex
}

// Client is tls.Client for a relay connection. It owns c.
func Client(c net.Conn, config *tls.Config) *Conn {
	r := newRecords(c)
	return &Conn{Conn: tls.Client(r, config), records: r}
}

// Server is tls.Server for a relay connection. It owns c.
func Server(c net.Conn, config *tls.Config) *Conn {
	r := newRecords(c)
	return &Conn{Conn: tls.Server(r, config), records: r}
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	if len(b) <= recordData {
		return c.Conn.Write(b)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.records.Cork()
	n, err := c.Conn.Write(b)
	return n, errors.Join(err, c.records.Uncork())
}

// Close implements net.Conn. As with tls.Conn, the end is not orderly during a Write, which may
// never return.
func (c *Conn) Close() error {
	if !c.writing.TryLock() {
		_ = c.NetConn().Close()
		return c.Conn.Close()
	}
	defer c.writing.Unlock()
	return c.Conn.Close()
}

// RecordReady reports whether a whole record is buffered, so that a Read returns at once. It is
// only for the goroutine that reads.
func (c *Conn) RecordReady() bool { return c.records.ready() }
