package http1

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// Answers follows the answers on a connection as they come, in pieces of any size, to know when none is under way. It agrees with
// ReadResponse and CopyBody on where each ends. The zero value is a connection on which nothing was asked.
type Answers struct {
	asked []string // the methods of requests whose answer has not ended
	state answersState
	left  int64  // bytes of a body or of a chunk that are still to come
	line  []byte // what came of a head or a line that has not ended
}

type answersState int

const (
	answerHead answersState = iota
	answerBody
	chunkSize
	chunkData
	chunkEnd
	trailer
	answerLost // there is no telling any more, or the answer ends with the connection
)

// Expect says that a request with a method was passed on.
func (a *Answers) Expect(method string) { a.asked = append(a.asked, method) }

// Between says whether every request has its whole answer.
func (a *Answers) Between() bool {
	return len(a.asked) == 0 && a.state == answerHead && len(a.line) == 0
}

// Lost says that it cannot be said any more, for as long as the connection lasts.
func (a *Answers) Lost() bool { return a.state == answerLost }

// Feed follows what the server says next.
func (a *Answers) Feed(b []byte) {
	for len(b) > 0 {
		switch a.state {
		case answerHead:
			b = a.head(b)
		case answerBody, chunkData:
			n := min(int64(len(b)), a.left)
			b, a.left = b[n:], a.left-n
			switch {
			case a.left > 0:
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
	a.asked = a.asked[1:]
	if len(a.asked) == 0 {
		a.asked = nil
	}
	a.state = answerHead
}

func (a *Answers) lose() { a.state, a.line = answerLost, nil }

// head follows a head and returns what comes after it.
func (a *Answers) head(b []byte) []byte {
	if len(a.asked) == 0 {
		a.lose() // an answer to nothing
		return nil
	}
	whole := b
	if len(a.line) > 0 {
		a.line = append(a.line, b...)
		whole = a.line
	}
	h, err := parseResponse(whole, a.asked[0])
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
	case h.Status < 200: // another one follows
	case h.Framing == Chunked:
		a.state = chunkSize
	case h.Framing == Length && h.Length > 0:
		a.state, a.left = answerBody, h.Length
	default:
		a.end()
	}
	return rest
}

// bodyLine follows a line between chunks and returns what comes after it.
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
			a.state, a.left = chunkData, size
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

// chunk is the size of a chunk, in bytes, that a line says.
func chunk(line string) (int64, bool) {
	digits, _, _ := strings.Cut(line, ";")
	digits = strings.TrimRight(digits, " \t")
	size, err := strconv.ParseUint(digits, 16, 62)
	return int64(size), err == nil && len(digits) <= 15 && !strings.ContainsAny(digits, "+-_")
}
