// Package http1 reads HTTP/1 messages just far enough to know where each ends, and passes their bytes on as they came. What could be
// understood in two ways it does not understand at all (ErrUnclear): then the caller lets the app see exactly what the client sent.
// The rules are those of RFC 9112.
package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrUnclear says that a message is not one that every recipient reads in the same way.
var ErrUnclear = errors.New("not plain HTTP/1")

// MaxHead bounds a head, in bytes. Beyond it a request is unclear: what the app's own limit is, the app says.
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
	Raw     []byte // as it came, with the empty line
	Method  string // of a request
	Target  string
	Status  int // of an answer
	Minor   int // of the version, 0 or 1
	Fields  []Field
	Framing Framing
	Length  int64
	Close   bool // the connection ends with this message
}

// Field is one line of a head. The value has no space around it.
type Field struct{ Name, Value string }

// Values are the values of all fields with a name, whatever its case.
func (h *Head) Values(name string) []string {
	var all []string
	for _, f := range h.Fields {
		if strings.EqualFold(f.Name, name) {
			all = append(all, f.Value)
		}
	}
	return all
}

// ReadRequest reads the head of a request. With ErrUnclear the head has Raw, which is what was taken from r. io.EOF means that
// the client has no more to say.
func ReadRequest(r *bufio.Reader) (*Head, error) {
	h := &Head{}
	line, err := readLine(r, h)
	if err != nil {
		return h, err
	}
	method, rest, ok := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || !isToken(method) || !isVisible(target) || !h.version(version) {
		return h, fmt.Errorf("%w: the request line", ErrUnclear)
	}
	h.Method, h.Target = method, target
	if err := readFields(r, h); err != nil {
		return h, err
	}
	hosts := len(h.Values("Host"))
	if method == "CONNECT" || hosts > 1 || (hosts == 0 && h.Minor == 1) {
		return h, fmt.Errorf("%w: the host", ErrUnclear)
	}
	lengths, codings := h.Values("Content-Length"), h.Values("Transfer-Encoding")
	switch {
	case len(codings) == 1 && len(lengths) == 0 && h.Minor == 1 && strings.EqualFold(codings[0], "chunked"):
		h.Framing = Chunked
	case len(codings) == 0 && len(lengths) == 1:
		if h.Length, ok = number(lengths[0]); !ok {
			return h, fmt.Errorf("%w: Content-Length", ErrUnclear)
		}
		if h.Length > 0 {
			h.Framing = Length
		}
	case len(codings) != 0 || len(lengths) != 0:
		return h, fmt.Errorf("%w: the length of the body", ErrUnclear)
	}
	h.Close = h.closes()
	return h, nil
}

// ReadResponse reads the head of an answer to a request with a method. An answer that is unclear in its length ends with its connection.
func ReadResponse(r *bufio.Reader, method string) (*Head, error) {
	h := &Head{}
	line, err := readLine(r, h)
	if err != nil {
		return h, err
	}
	version, rest, ok := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.ParseUint(code, 10, 16)
	if !ok || err != nil || len(code) != 3 || !h.version(version) {
		return h, fmt.Errorf("%w: the status line", ErrUnclear)
	}
	h.Status = int(status)
	if err := readFields(r, h); err != nil {
		return h, err
	}
	h.Close = h.closes()
	lengths, codings := h.Values("Content-Length"), h.Values("Transfer-Encoding")
	switch {
	case method == "HEAD" || status < 200 || status == 204 || status == 304:
	case len(codings) == 1 && strings.EqualFold(codings[0], "chunked") && len(lengths) == 0:
		h.Framing = Chunked
	case len(codings) == 0 && len(lengths) == 1:
		if h.Length, ok = number(lengths[0]); ok {
			h.Framing = Length
			break
		}
		fallthrough
	default:
		h.Framing, h.Close = UntilClose, true
	}
	return h, nil
}

func (h *Head) version(s string) bool {
	if len(s) != 8 || !strings.HasPrefix(s, "HTTP/1.") || (s[7] != '0' && s[7] != '1') {
		return false
	}
	h.Minor = int(s[7] - '0')
	return true
}

// closes says whether the connection ends with the message, RFC 9112 section 9.3.
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

// readLine takes one line, which ends with CRLF and nothing less.
func readLine(r *bufio.Reader, h *Head) (string, error) {
	start := len(h.Raw)
	for {
		part, err := r.ReadSlice('\n')
		h.Raw = append(h.Raw, part...)
		if len(h.Raw) > MaxHead {
			return "", fmt.Errorf("%w: a head over %d bytes", ErrUnclear, MaxHead)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return "", err
		}
		break
	}
	line := h.Raw[start:]
	if !bytes.HasSuffix(line, []byte("\r\n")) {
		return "", fmt.Errorf("%w: a line that does not end with CRLF", ErrUnclear)
	}
	return string(line[:len(line)-2]), nil
}

func readFields(r *bufio.Reader, h *Head) error {
	for {
		line, err := readLine(r, h)
		if err != nil {
			return err
		}
		if line == "" {
			return nil
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || !isToken(name) || !isText(value) {
			return fmt.Errorf("%w: a header field", ErrUnclear)
		}
		h.Fields = append(h.Fields, Field{name, value})
	}
}

func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// isToken is token of RFC 9110, section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

func isVisible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return s != ""
}

// isText is field-content of RFC 9110, section 5.5: visible characters, spaces and tabs, and bytes over 0x7f.
func isText(s string) bool {
	for i := range len(s) {
		if (s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f {
			return false
		}
	}
	return true
}
