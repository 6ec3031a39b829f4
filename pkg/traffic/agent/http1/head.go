// Package http1 reads HTTP/1 messages just far enough to know where each ends, and passes their
// bytes on unchanged. It rejects a message that two recipients could read in two ways (ErrUnclear):
// then the caller sends the app exactly what the client sent. The rules are those of RFC 9112.
// Start with ReadRequest, ReadResponse and CopyBody.
package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ErrUnclear means that not every recipient reads a message in the same way.
var ErrUnclear = errors.New("not plain HTTP/1")

// MaxHead bounds a head, in bytes. A longer head is unclear, so the app gets the request and
// applies its own limit.
const MaxHead = 1 << 20

// Framing is how a body ends.
type Framing int

// The framings of RFC 9112, section 6.3.
const (
	NoBody Framing = iota
	Length
	Chunked
	UntilClose
)

// Head is the head of a request or of an answer.
type Head struct {
	Raw     []byte // the bytes of the head, with the empty line
	Method  string // of a request
	Target  string
	Status  int // of an answer
	Minor   int // of the version, 0 or 1
	Fields  []Field
	Framing Framing
	Length  int64
	Close   bool // the connection ends with this message
	Vague   bool // of an answer: it gives a length that not all recipients agree on; the connection may go on
}

// Field is one line of a head. The value has no space at its ends.
type Field struct{ Name, Value string }

// Values returns the values of all fields with a name, in any case.
func (h *Head) Values(name string) []string {
	var all []string
	for _, f := range h.Fields {
		if strings.EqualFold(f.Name, name) {
			all = append(all, f.Value)
		}
	}
	return all
}

// Has reports whether there is a field with a name, in any case.
func (h *Head) Has(name string) bool { return h.count(name) > 0 }

// ReadRequest reads the head of a request. After an error, Raw of the head holds the bytes that
// were read from r. io.EOF means that the client sends no further request. ReadRequest calls
// reserve for each part of a head that does not arrive as a whole, first with 0. reserve reports
// whether the caller may hold that many bytes more; when it may not, the head is unclear.
func ReadRequest(r *bufio.Reader, reserve func(n int) bool) (*Head, error) {
	if h, err := buffered(r, ParseRequest); h != nil {
		return h, err
	}
	h := &Head{}
	reserve(0)
	line, err := readLine(r, h, reserve)
	if err != nil {
		return h, err
	}
	if err := h.requestLine(string(line)); err != nil {
		return h, err
	}
	fields, err := readFields(r, h, reserve)
	if err != nil {
		return h, err
	}
	return h, h.request(fields)
}

// ParseRequest parses the head of a request at the start of b. io.ErrUnexpectedEOF means that the
// head is incomplete. Raw of the head is a part of b.
func ParseRequest(b []byte) (*Head, error) {
	h := &Head{}
	line, fields, err := h.whole(b)
	if err != nil {
		return h, err
	}
	if err := h.requestLine(line); err != nil {
		return h, err
	}
	return h, h.request(fields)
}

// requestLine parses the first line of a request, without its line end.
func (h *Head) requestLine(line string) error {
	method, rest, ok := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || !isToken(method) || !isVisible(target) || !h.version(version) {
		return fmt.Errorf("%w: the request line", ErrUnclear)
	}
	h.Method, h.Target = method, target
	return nil
}

// request parses the fields of a request.
func (h *Head) request(fields string) error {
	if err := h.fields(fields); err != nil {
		return err
	}
	hosts := h.count("Host")
	if h.Method == "CONNECT" || hosts > 1 || (hosts == 0 && h.Minor == 1) {
		return fmt.Errorf("%w: the host", ErrUnclear)
	}
	if err := h.requestFraming(); err != nil {
		return err
	}
	h.Close = h.closes()
	return nil
}

// requestFraming finds out how the body of a request ends, from its fields.
func (h *Head) requestFraming() error {
	lengths, codings := h.Values("Content-Length"), h.Values("Transfer-Encoding")
	switch {
	case len(codings) == 1 && len(lengths) == 0 && h.Minor == 1 && strings.EqualFold(codings[0], "chunked"):
		h.Framing = Chunked
	case len(codings) == 0 && len(lengths) == 1:
		var ok bool
		if h.Length, ok = number(lengths[0]); !ok {
			return fmt.Errorf("%w: Content-Length", ErrUnclear)
		}
		if h.Length > 0 {
			h.Framing = Length
		}
	case len(codings) != 0 || len(lengths) != 0:
		return fmt.Errorf("%w: the length of the body", ErrUnclear)
	}
	return nil
}

// ReadResponse reads the head of an answer to a request with a method. An answer without a length
// ends with its connection.
func ReadResponse(r *bufio.Reader, method string) (*Head, error) {
	if h, err := buffered(r, func(b []byte) (*Head, error) { return parseResponse(b, method) }); h != nil {
		return h, err
	}
	h := &Head{}
	line, err := readLine(r, h, unlimited)
	if err != nil {
		return h, err
	}
	if err := h.statusLine(string(line)); err != nil {
		return h, err
	}
	fields, err := readFields(r, h, unlimited)
	if err != nil {
		return h, err
	}
	return h, h.response(fields, method)
}

// parseResponse parses the head of an answer at the start of b.
func parseResponse(b []byte, method string) (*Head, error) {
	h := &Head{}
	line, fields, err := h.whole(b)
	if err != nil {
		return h, err
	}
	if err := h.statusLine(line); err != nil {
		return h, err
	}
	return h, h.response(fields, method)
}

// statusLine parses the first line of an answer, without its line end.
func (h *Head) statusLine(line string) error {
	version, rest, ok := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.ParseUint(code, 10, 16)
	if !ok || err != nil || len(code) != 3 || !h.version(version) {
		return fmt.Errorf("%w: the status line", ErrUnclear)
	}
	h.Status = int(status)
	return nil
}

// response parses the fields of an answer to a request with a method.
func (h *Head) response(fields, method string) error {
	if err := h.fields(fields); err != nil {
		return err
	}
	h.Close = h.closes()
	lengths, codings := h.members("Content-Length"), h.members("Transfer-Encoding")
	switch {
	case method == "HEAD" || h.Status < 200 || h.Status == 204 || h.Status == 304:
		return nil
	case len(codings) > 0 && strings.EqualFold(codings[len(codings)-1], "chunked"):
		// This holds whatever the other codings are, and although some frameworks give a length too
		// (RFC 9112, section 6.3).
		h.Framing = Chunked
		return nil
	case len(codings) == 0 && len(lengths) > 0 && len(slices.Compact(lengths)) == 1:
		var ok bool
		if h.Length, ok = number(lengths[0]); ok {
			h.Framing = Length
			return nil
		}
	}
	h.Framing, h.Close = UntilClose, true
	h.Vague = len(codings)+len(lengths) > 0
	return nil
}

// members returns the members of all fields with a name whose values are lists.
func (h *Head) members(name string) []string {
	var all []string
	for _, f := range h.Fields {
		if strings.EqualFold(f.Name, name) {
			for m := range strings.SplitSeq(f.Value, ",") {
				all = append(all, strings.Trim(m, " \t"))
			}
		}
	}
	return all
}

// count returns how many fields have a name.
func (h *Head) count(name string) (n int) {
	for _, f := range h.Fields {
		if strings.EqualFold(f.Name, name) {
			n++
		}
	}
	return n
}

// version parses the version of HTTP and reports whether it is 1.0 or 1.1.
func (h *Head) version(s string) bool {
	if len(s) != 8 || !strings.HasPrefix(s, "HTTP/1.") || (s[7] != '0' && s[7] != '1') {
		return false
	}
	h.Minor = int(s[7] - '0')
	return true
}

// closes reports whether the connection ends with the message (RFC 9112, section 9.3).
func (h *Head) closes() bool {
	keep := false
	for _, v := range h.Values("Connection") {
		for option := range strings.SplitSeq(v, ",") {
			switch strings.ToLower(strings.TrimSpace(option)) {
			case "close":
				return true
			case "keep-alive":
				keep = true
			}
		}
	}
	return h.Minor == 0 && !keep
}

// buffered reads a head that is complete in the buffer of r and clear. That costs less than reading
// it line by line. It returns nil when the head is incomplete or unclear.
func buffered(r *bufio.Reader, parse func([]byte) (*Head, error)) (*Head, error) {
	if _, err := r.Peek(1); err != nil {
		return &Head{}, err
	}
	b, _ := r.Peek(r.Buffered())
	h, err := parse(b)
	if err != nil {
		return nil, nil
	}
	h.Raw = bytes.Clone(h.Raw)
	_, _ = r.Discard(len(h.Raw))
	return h, nil
}

// unlimited reserves any number of bytes.
func unlimited(int) bool { return true }

// readLine reads one line and returns it without its end, which must be CRLF.
func readLine(r *bufio.Reader, h *Head, reserve func(n int) bool) ([]byte, error) {
	start := len(h.Raw)
	for {
		part, err := r.ReadSlice('\n')
		h.Raw = append(h.Raw, part...)
		if len(h.Raw) > MaxHead {
			return nil, fmt.Errorf("%w: a head over %d bytes", ErrUnclear, MaxHead)
		}
		if !reserve(len(part)) {
			return nil, fmt.Errorf("%w: no memory for a head", ErrUnclear)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		break
	}
	line, ok := bytes.CutSuffix(h.Raw[start:], []byte("\r\n"))
	if !ok {
		return nil, fmt.Errorf("%w: a line that does not end with CRLF", ErrUnclear)
	}
	return line, nil
}

// readFields reads the lines after the first, up to and with the empty line.
func readFields(r *bufio.Reader, h *Head, reserve func(n int) bool) (string, error) {
	start := len(h.Raw)
	for {
		line, err := readLine(r, h, reserve)
		if err != nil {
			return "", err
		}
		if len(line) == 0 {
			return string(h.Raw[start:]), nil
		}
	}
}

// whole finds a complete head at the start of b, and returns its first line and the other lines.
func (h *Head) whole(b []byte) (line, fields string, err error) {
	end := bytes.Index(b[:min(len(b), MaxHead)], []byte("\r\n\r\n"))
	if end < 0 {
		return "", "", io.ErrUnexpectedEOF
	}
	h.Raw = b[:end+4]
	line, fields, _ = strings.Cut(string(h.Raw), "\n")
	line, ok := strings.CutSuffix(line, "\r")
	if !ok {
		return "", "", fmt.Errorf("%w: a line that does not end with CRLF", ErrUnclear)
	}
	return line, fields, nil
}

// usualFields is how many fields are allocated at once.
const usualFields = 32

// fields parses lines that end with an empty line.
func (h *Head) fields(lines string) error {
	h.Fields = make([]Field, 0, min(strings.Count(lines, "\n"), usualFields))
	for {
		line, rest, _ := strings.Cut(lines, "\n")
		line, ok := strings.CutSuffix(line, "\r")
		if ok && line == "" {
			return nil
		}
		name, value, colon := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || !colon || !isToken(name) || !isText(value) {
			return fmt.Errorf("%w: a header field", ErrUnclear)
		}
		h.Fields = append(h.Fields, Field{Name: name, Value: value})
		lines = rest
	}
}

// number parses a non-negative decimal number of at most 18 digits.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// isToken reports whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		isAlphanumeric := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !isAlphanumeric && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// isVisible reports whether s has only visible characters and bytes over 0x7f, and at least one.
func isVisible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return s != ""
}

// isText reports whether s is the content of a field (RFC 9110, section 5.5): visible characters,
// spaces, tabs, and bytes over 0x7f.
func isText(s string) bool {
	for i := range len(s) {
		if (s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f {
			return false
		}
	}
	return true
}
