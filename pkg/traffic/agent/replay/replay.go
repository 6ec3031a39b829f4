// Package replay keeps what was sent to a laptop until the laptop has acknowledged it, so that the
// app can get it instead if the laptop is lost. Start with Buffer.
package replay

import (
	"errors"
	"io"
	"net/http"

	"github.com/detour-dev/detour/pkg/relay/mux"
)

// MaxSize bounds the bytes of a request, or of the beginning of a connection, that are kept. Of a
// longer one the app cannot get what the laptop did not take.
const MaxSize = 64 << 10

// Buffer keeps what was sent. It is for one goroutine at a time.
type Buffer struct {
	Bytes   []byte
	Whole   bool // Bytes is a whole request
	TooLong bool // there was more than MaxSize, and nothing is kept
}

// Keep appends b, unless that is too much.
func (r *Buffer) Keep(b []byte) {
	if !r.TooLong {
		r.Bytes = append(r.Bytes, b...)
	}
	if len(r.Bytes) > MaxSize {
		r.TooLong, r.Bytes = true, nil
	}
}

// Writer passes a request on to To and keeps it. While it keeps all, it accepts more although To
// has failed: the request must be read to its end before the app can get it.
type Writer struct {
	*Buffer
	To  io.Writer
	Err error // of To
}

// Write implements io.Writer.
func (w *Writer) Write(b []byte) (int, error) {
	w.Keep(b)
	if w.Err == nil {
		_, w.Err = w.To.Write(b)
	}
	if w.Err != nil && w.TooLong {
		return 0, w.Err
	}
	return len(b), nil
}

// Repeatable reports whether the app may get a request although the laptop may have got it too: the
// relay connection was lost with err, and the method is idempotent (RFC 9110, 9.2.2).
func Repeatable(method string, err error) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return errors.Is(err, mux.ErrConnLost)
	}
	return false
}
