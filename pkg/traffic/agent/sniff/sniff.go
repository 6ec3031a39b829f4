// Package sniff recognises protocols by the first bytes of a connection or of a message. Start with
// Classify.
package sniff

import "bytes"

// Protocol is the protocol of a connection, judged by its first bytes.
type Protocol int

const (
	Unknown Protocol = iota
	HTTP1
	HTTP2
	Other
)

// preface opens every HTTP/2 connection (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Classify judges the first bytes of a connection. It never returns Unknown.
func Classify(b []byte) Protocol {
	switch {
	case bytes.HasPrefix(b, []byte(preface)) || (len(b) >= 3 && bytes.HasPrefix([]byte(preface), b)):
		return HTTP2
	case StartsRequest(b):
		return HTTP1
	default:
		return Other
	}
}

// StartsRequest reports whether b begins with a complete HTTP/1 request line: method SP target SP
// HTTP/1.x CRLF (RFC 9112, section 3).
func StartsRequest(b []byte) bool {
	const longestLine = 64 << 10
	end := bytes.IndexByte(b[:min(len(b), longestLine)], '\n')
	if end < 0 {
		return false
	}
	line := bytes.TrimSuffix(b[:end], []byte("\r"))
	method, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(method) == 0 || len(method) > 32 {
		return false
	}
	for _, c := range method {
		if !isToken(c) {
			return false
		}
	}
	space := bytes.LastIndexByte(rest, ' ')
	if space <= 0 {
		return false
	}
	v := rest[space+1:]
	return len(v) == 8 && bytes.HasPrefix(v, []byte("HTTP/1.")) && (v[7] == '0' || v[7] == '1')
}

// isToken reports whether c is a character of a token (RFC 9110, section 5.6.2).
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

// SwitchesProtocol reports whether b begins with an answer of status 101. After it the connection
// is no longer HTTP.
func SwitchesProtocol(b []byte) bool {
	return len(b) >= 12 && bytes.HasPrefix(b, []byte("HTTP/1.")) && bytes.Equal(b[8:12], []byte(" 101"))
}

// BeginsRequest reports whether b may be the beginning of an HTTP/1 request: a method and a space,
// or the first part of them.
func BeginsRequest(b []byte) bool {
	for i, c := range b[:min(len(b), 33)] {
		if c == ' ' {
			return i > 0
		}
		if !isToken(c) {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 32
}

// StartsHTTP2Server reports whether b begins with the first frame of an HTTP/2 server: SETTINGS on
// stream 0 (RFC 9113, sections 3.4 and 6.5).
func StartsHTTP2Server(b []byte) bool {
	return len(b) >= 9 && b[0] == 0 && b[1] == 0 && b[2]%6 == 0 && b[3] == 4 && b[4] == 0 &&
		bytes.Equal(b[5:9], []byte{0, 0, 0, 0})
}
