package http1

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// Answers follows the answers on a connection, in parts of any size, and knows when all are
// complete. It agrees with ReadResponse and CopyBody about the end of each answer. The zero value
// is a connection without requests.
type Answers struct {
	methods   []string // of the requests whose answer is incomplete
	state     answersState
	remaining int64  // bytes of the body or of the chunk
	line      []byte // the part of an incomplete head or line
}

type answersState int

const (
	answerHead answersState = iota
	answerBody
	chunkSize
	chunkData
	chunkEnd
	trailer
	answerLost // the end of the answers is unknown, or it is the end of the connection
)

// Expect must be called for each request that is passed on, with its method.
func (a *Answers) Expect(method string) { a.methods = append(a.methods, method) }

// Between reports whether every request has its complete answer.
func (a *Answers) Between() bool {
	return len(a.methods) == 0 && a.state == answerHead && len(a.line) == 0
}

// Lost reports that Between is false for the rest of the connection.
func (a *Answers) Lost() bool { return a.state == answerLost }

// Feed follows the next bytes of the server.
func (a *Answers) Feed(b []byte) {
	for len(b) > 0 {
		switch a.state {
		case answerHead:
			b = a.head(b)
		case answerBody, chunkData:
			n := min(int64(len(b)), a.remaining)
			b, a.remaining = b[n:], a.remaining-n
			switch {
			case a.remaining > 0:
			case a.state == answerBody:
				a.end()
			default:
				a.state = chunkEnd
			}
		case chunkSize, chunkEnd, trailer:
			b = a.bodyLine(b)
		default:
			return
		}
	}
}

func (a *Answers) end() {
	a.methods = a.methods[1:]
	if len(a.methods) == 0 {
		a.methods = nil
	}
	a.state = answerHead
}

func (a *Answers) lose() { a.state, a.line = answerLost, nil }

// head follows a head and returns the bytes after it.
func (a *Answers) head(b []byte) []byte {
	if len(a.methods) == 0 {
		a.lose() // an answer without a request
		return nil
	}
	whole := b
	if len(a.line) > 0 {
		a.line = append(a.line, b...)
		whole = a.line
	}
	h, err := parseResponse(whole, a.methods[0])
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && len(whole) < MaxHead:
		if len(a.line) == 0 {
			a.line = bytes.Clone(b)
		}
		return nil
	case err != nil || h.Status == 101 || h.Framing == UntilClose:
		a.lose()
		return nil
	}
	rest := b[len(b)-(len(whole)-len(h.Raw)):]
	a.line = nil
	switch {
	case h.Status < 200: // another head follows
	case h.Framing == Chunked:
		a.state = chunkSize
	case h.Framing == Length && h.Length > 0:
		a.state, a.remaining = answerBody, h.Length
	default:
		a.end()
	}
	return rest
}

// bodyLine follows a line between chunks and returns the bytes after it.
func (a *Answers) bodyLine(b []byte) []byte {
	end := bytes.IndexByte(b, '\n') + 1
	if end == 0 {
		if a.line = append(a.line, b...); len(a.line) > maxChunkLine {
			a.lose()
		}
		return nil
	}
	line := b[:end]
	if len(a.line) > 0 {
		line = append(a.line, line...)
		a.line = nil
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok || len(line) > maxChunkLine {
		a.lose()
		return nil
	}
	switch a.state {
	case chunkSize:
		size, ok := chunk(text)
		switch {
		case !ok:
			a.lose()
		case size == 0:
			a.state = trailer
		default:
			a.state, a.remaining = chunkData, size
		}
	case chunkEnd:
		if text != "" {
			a.lose()
		} else {
			a.state = chunkSize
		}
	default:
		if text == "" {
			a.end()
		}
	}
	return b[end:]
}

// chunk parses the size of a chunk, in bytes, from the line before it.
func chunk(line string) (int64, bool) {
	digits, _, _ := strings.Cut(line, ";")
	digits = strings.TrimRight(digits, " \t")
	size, err := strconv.ParseUint(digits, 16, 62)
	return int64(size), err == nil && len(digits) <= 15 && !strings.ContainsAny(digits, "+-_")
}
