package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxChunkLine bounds the line before a chunk, with its extensions, and a line of a trailer, in
// bytes.
const maxChunkLine = 16 << 10

// CopyBody copies the body of a message as it arrives. After ErrUnclear it has copied everything
// that it has read, and the end of the body is unknown.
func CopyBody(w io.Writer, r *bufio.Reader, h *Head) error {
	switch h.Framing {
	case NoBody:
		return nil
	case Length:
		return copyN(w, r, h.Length)
	case Chunked:
		return copyChunks(w, r)
	default:
		return CopyRaw(w, r)
	}
}

func copyChunks(w io.Writer, r *bufio.Reader) error {
	for {
		line, err := passLine(w, r)
		if err != nil {
			return err
		}
		size, ok := chunk(line)
		if !ok {
			return fmt.Errorf("%w: the size of a chunk", ErrUnclear)
		}
		if size == 0 {
			break
		}
		if err := copyN(w, r, size); err != nil {
			return err
		}
		if line, err := passLine(w, r); err != nil {
			return err
		} else if line != "" {
			return fmt.Errorf("%w: the end of a chunk", ErrUnclear)
		}
	}
	for {
		if line, err := passLine(w, r); err != nil || line == "" {
			return err
		}
	}
}

// passLine copies one line and returns it without its end.
func passLine(w io.Writer, r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(part) > 0 {
			line = append(line, part...)
			if _, werr := w.Write(part); werr != nil {
				return "", werr
			}
		}
		switch {
		case len(line) > maxChunkLine:
			return "", fmt.Errorf("%w: a line over %d bytes in a body", ErrUnclear, maxChunkLine)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		}
		break
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok {
		return "", fmt.Errorf("%w: a line in a body that does not end with CRLF", ErrUnclear)
	}
	return text, nil
}

// copyN copies n bytes, each as soon as it arrives.
func copyN(w io.Writer, r *bufio.Reader, n int64) error {
	for n > 0 {
		if have := int64(r.Buffered()); have > 0 {
			b, err := r.Peek(int(min(have, n)))
			if err != nil {
				return err
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
			n -= int64(len(b))
			_, _ = r.Discard(len(b))
			continue
		}
		if _, err := r.Peek(1); err != nil {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// CopyRaw copies bytes of any protocol as they arrive, until the end.
func CopyRaw(w io.Writer, r *bufio.Reader) error {
	for {
		if _, err := r.Peek(1); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		b, _ := r.Peek(r.Buffered())
		n, err := w.Write(b)
		if err != nil {
			return err
		}
		_, _ = r.Discard(n)
	}
}
