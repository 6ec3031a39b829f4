package netx

import (
	"errors"
	"io"
	"sync"
)

const (
	// A copy begins with a small buffer, takes a large one while reads fill what it has, and gives that back when one brings little again:
	// most connections wait most of the time.
	largeCopy, smallCopy = 64 << 10, 4 << 10
	// A transfer is bulk after so many full buffers in a row, and for so long.
	bulkAfter, bulkLength = 4, 16 << 20
)

var largeCopies = sync.Pool{New: func() any { b := make([]byte, largeCopy); return &b }}

// Copy passes on what from says until it ends. Where both are the kernel's sockets a bulk transfer is left to the kernel.
func Copy(to io.Writer, from io.Reader) error {
	small := make([]byte, smallCopy)
	buf, large := small, (*[]byte)(nil)
	giveBack := func() {
		if large != nil {
			largeCopies.Put(large)
			buf, large = small, nil
		}
	}
	defer giveBack()
	full := 0
	for {
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
		case n == len(buf) && large == nil:
			large = largeCopies.Get().(*[]byte)
			buf = *large
		case n <= smallCopy:
			giveBack()
		}
	}
}

// spliceSockets lets the kernel move the next bytes itself, where both are its sockets. Small messages would pay more for that than they gain.
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
