package relay

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/detour-dev/detour/pkg/netx"
)

// Several TLS records at a time.
//
// crypto/tls makes a system call for each record of 16 KiB, and each write is at least one packet
// that every hop of two nodes' networks handles alone. Here the records of a Write leave together
// (netx.CorkConn), and one read takes as many records as have arrived. It also knows whether a
// whole record is buffered, which crypto/tls does not tell.
//
// Gain: a byte of a download cost the agent 2.8 to 4.0 -> 1.3 ns of processor time, and the
// traffic-manager 2.5 to 3.4 -> 1.7; in.http.down 0.090 -> 0.162 of plain. Cost: this file looks at
// the length of records, and a connection with bulk has a read buffer of 68 KiB from a pool.
// Measured in the cluster (docs/design/performance-log.md); BenchmarkConn compares it with
// crypto/tls alone.

const (
	// A TLS record begins with 5 bytes, of which the last two are its length without them. It holds
	// at most recordData bytes of data (RFC 8446, section 5.1).
	recordHeader = 5
	recordData   = 16 << 10
	// A connection reads smallRead bytes at once until it gets that many, and then largeRead: four
	// full records and the overhead of encryption.
	smallRead = 4 << 10
	largeRead = 68 << 10
)

var largeReads = sync.Pool{New: func() any { b := make([]byte, largeRead); return &b }}

// records is the connection below TLS. Its reads are only for one goroutine.
type records struct {
	*netx.CorkConn

	buf      []byte
	from, to int     // buf[from:to] was read and TLS has not taken it
	rest     int     // bytes of the record that TLS is taking
	large    *[]byte // buf, if it is from largeReads
	read     int     // how many bytes the last read got
	room     int     // how many it could have got
}

func newRecords(c net.Conn) *records {
	return &records{CorkConn: &netx.CorkConn{Conn: netx.Wrap(c)}}
}

// Read gives TLS at most one record at a time, so that ready is right between two records.
func (r *records) Read(b []byte) (int, error) {
	if r.rest == 0 {
		if err := r.fill(recordHeader); err != nil {
			return 0, err
		}
		r.rest = r.recordLength()
	} else if err := r.fill(1); err != nil {
		return 0, err
	}
	n := copy(b, r.buf[r.from:min(r.to, r.from+r.rest)])
	r.from += n
	r.rest -= n
	return n, nil
}

// recordLength returns the length of the record that begins with the buffered bytes.
func (r *records) recordLength() int {
	record := r.buf[r.from:r.to]
	if len(record) < recordHeader {
		return len(record) // the connection has ended in the middle of a header
	}
	return recordHeader + int(binary.BigEndian.Uint16(record[recordHeader-2:]))
}

// ready reports whether a whole record is buffered.
func (r *records) ready() bool {
	n := r.to - r.from
	return r.rest == 0 && n >= recordHeader && n >= r.recordLength()
}

// fill reads until n bytes are buffered, or fewer at the end of the connection.
func (r *records) fill(n int) error {
	for r.to-r.from < n {
		r.makeRoom()
		r.room = len(r.buf) - r.to
		var err error
		r.read, err = r.Conn.Read(r.buf[r.to:])
		r.to += r.read
		switch {
		case r.read > 0 || err == nil:
		case errors.Is(err, io.EOF) && r.to > r.from:
			return nil // TLS has to see that the record is cut
		default:
			return err
		}
	}
	return nil
}

// makeRoom chooses the buffer for the next read.
func (r *records) makeRoom() {
	if r.from < r.to { // a part of a header
		r.to = copy(r.buf, r.buf[r.from:r.to])
		r.from = 0
		return
	}
	r.from, r.to = 0, 0
	switch {
	case r.buf == nil:
		r.buf = make([]byte, smallRead)
	case r.large == nil && r.read == r.room:
		r.large = largeReads.Get().(*[]byte)
		r.buf = *r.large
	case r.large != nil && r.read <= smallRead:
		largeReads.Put(r.large)
		r.large, r.buf = nil, make([]byte, smallRead)
	}
}

// NetConn returns the connection below.
func (r *records) NetConn() net.Conn { return r.Conn }
