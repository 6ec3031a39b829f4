package netx

import (
	"errors"
	"io"
	"sync"
)

// Copies with small buffers.
//
// A copy starts with a small buffer, takes a large one from a pool while reads fill the one it has,
// and returns it when a read brings little again. Most connections wait most of the time.
//
// Gain: 2000 connections that waited kept 400 MB of the traffic-manager in 64 KiB buffers; now 34
// MB. Cost: the first read of a transfer is small. After a few full buffers in a row the kernel
// moves the bytes itself (splice), which small messages would pay more for than they gain. Measured
// in the laboratory (docs/design/performance-log.md); BenchmarkCopy compares it with io.Copy.
const (
	largeCopy, smallCopy = 64 << 10, 4 << 10 // sizes of the buffers
	// A transfer is bulk after bulkAfter full buffers in a row, for bulkLength bytes.
	bulkAfter, bulkLength = 4, 16 << 20
)

var largeCopies = sync.Pool{New: func() any { b := make([]byte, largeCopy); return &b }}

// Copy copies from one end to the other until from ends, and returns nil then. It closes neither.
func Copy(to io.Writer, from io.Reader) error {
	b := copyBuffer{small: make([]byte, smallCopy)}
	defer b.shrink()
	full := 0 // large buffers in a row
	for {
		buf := b.buffer()
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if n == largeCopy {
			full++
		} else {
			full = 0
		}
		if full == bulkAfter && err == nil {
			full = 0
			err = spliceSockets(to, from)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case n == len(buf):
			b.grow()
		case n <= smallCopy:
			b.shrink()
		}
	}
}

// copyBuffer is the buffer of one copy.
type copyBuffer struct {
	small []byte
	large *[]byte // from largeCopies, nil while small is enough
}

func (b *copyBuffer) buffer() []byte {
	if b.large != nil {
		return *b.large
	}
	return b.small
}

func (b *copyBuffer) grow() {
	if b.large == nil {
		b.large = largeCopies.Get().(*[]byte)
	}
}

func (b *copyBuffer) shrink() {
	if b.large != nil {
		largeCopies.Put(b.large)
		b.large = nil
	}
}

// spliceSockets lets the kernel move the next bulkLength bytes, if both ends are sockets.
func spliceSockets(to io.Writer, from io.Reader) error {
	w, ok := to.(*Conn)
	if !ok {
		return nil
	}
	r, ok := from.(*Conn)
	if !ok {
		return nil
	}
	_, err := io.CopyN(w.TCPConn, r.TCPConn, bulkLength)
	return err
}
