package relay

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/detour-dev/detour/pkg/netx"
)

const (
	// A record of TLS begins with 5 bytes, of which the last two are how many follow; it holds recordData at most (RFC 8446, 5.1).
	recordHeader = 5
	recordData   = 16 << 10
	// smallRead is what a connection reads at once until that is too little, and then largeRead: four full records, and the rest of them.
	smallRead = 4 << 10
	largeRead = 68 << 10
)

var largeReads = sync.Pool{New: func() any { b := make([]byte, largeRead); return &b }}

// Conn is a connection with TLS. Package tls makes a system call for each record, and with that a packet or more for each hop of the network to look
// at. Here several records share one where there are several.
type Conn struct {
	*tls.Conn
	records *records
	writing sync.Mutex // held by who writes more than a record
}

// Client is tls.Client.
func Client(c net.Conn, config *tls.Config) *Conn {
	r := &records{CorkConn: &netx.CorkConn{Conn: netx.Wrap(c)}}
	return &Conn{Conn: tls.Client(r, config), records: r}
}

// Server is tls.Server.
func Server(c net.Conn, config *tls.Config) *Conn {
	r := &records{CorkConn: &netx.CorkConn{Conn: netx.Wrap(c)}}
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

// Close implements net.Conn. As with tls.Conn, there is no end in order in the middle of a write, which may wait for ever.
func (c *Conn) Close() error {
	if !c.writing.TryLock() {
		_ = c.NetConn().Close()
		return c.Conn.Close()
	}
	defer c.writing.Unlock()
	return c.Conn.Close()
}

// RecordReady says whether a whole record waits to be read. It is for who reads.
func (c *Conn) RecordReady() bool { return c.records.waiting() }

// records is what lies below TLS.
type records struct {
	*netx.CorkConn

	// Only for who reads.
	all      []byte // of which all[from:to] was read and not taken
	from, to int
	left     int     // of the record that is being taken
	large    *[]byte // what all is of, or nil where it is small
	read     int     // what the last read brought
	room     int     // of so much
}

// Read gives TLS one record at a time, so that it is known here what waits.
func (r *records) Read(b []byte) (int, error) {
	if r.left == 0 {
		if err := r.await(recordHeader); err != nil {
			return 0, err
		}
		r.left = r.whole()
	} else if err := r.await(1); err != nil {
		return 0, err
	}
	n := copy(b, r.all[r.from:min(r.to, r.from+r.left)])
	r.from += n
	r.left -= n
	return n, nil
}

// whole is the length of the record that begins with what waits.
func (r *records) whole() int {
	record := r.all[r.from:r.to]
	if len(record) < recordHeader {
		return len(record) // no more will come
	}
	return recordHeader + int(binary.BigEndian.Uint16(record[recordHeader-2:]))
}

func (r *records) waiting() bool {
	n := r.to - r.from
	return r.left == 0 && n >= recordHeader && n >= r.whole()
}

// await reads until n bytes wait, or all that come before the end.
func (r *records) await(n int) error {
	for r.to-r.from < n {
		r.makeRoom()
		r.room = len(r.all) - r.to
		var err error
		r.read, err = r.Conn.Read(r.all[r.to:])
		r.to += r.read
		switch {
		case r.read > 0 || err == nil:
		case errors.Is(err, io.EOF) && r.to > r.from:
			return nil // TLS shall see that it was cut
		default:
			return err
		}
	}
	return nil
}

// makeRoom chooses what to read into next.
func (r *records) makeRoom() {
	if r.from < r.to { // a part of a header
		r.to = copy(r.all, r.all[r.from:r.to])
		r.from = 0
		return
	}
	r.from, r.to = 0, 0
	switch {
	case r.all == nil:
		r.all = make([]byte, smallRead)
	case r.large == nil && r.read == r.room:
		r.large = largeReads.Get().(*[]byte)
		r.all = *r.large
	case r.large != nil && r.read <= smallRead:
		largeReads.Put(r.large)
		r.large, r.all = nil, make([]byte, smallRead)
	}
}

// NetConn is the connection below.
func (r *records) NetConn() net.Conn { return r.Conn }
