package sniff

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// The first bytes of a connection decide whether it may move to the laptop later: only HTTP/1 has
// boundaries.
func TestClassify(t *testing.T) {
	for name, c := range map[string]struct {
		first string
		want  Protocol
	}{
		"HTTP/1.1":                     {"GET / HTTP/1.1\r\nHost: catalog\r\n\r\n", HTTP1},
		"HTTP/1.0":                     {"GET / HTTP/1.0\r\n\r\n", HTTP1},
		"only a request line":          {"GET / HTTP/1.1\r\n", HTTP1},
		"bare line feed":               {"GET / HTTP/1.1\n\n", HTTP1},
		"any method":                   {"PROPFIND /dav HTTP/1.1\r\n\r\n", HTTP1},
		"absolute target":              {"GET http://catalog:8080/ HTTP/1.1\r\n\r\n", HTTP1},
		"CONNECT":                      {"CONNECT db:5432 HTTP/1.1\r\n\r\n", HTTP1},
		"asterisk":                     {"OPTIONS * HTTP/1.1\r\n\r\n", HTTP1},
		"upgrade to HTTP/2":            {"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n", HTTP1},
		"HTTP/2":                       {preface, HTTP2},
		"HTTP/2 and its SETTINGS":      {preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00", HTTP2},
		"HTTP/2 in small pieces":       {"PRI * HT", HTTP2},
		"three bytes of HTTP/2":        {"PRI", HTTP2},
		"two could be any method":      {"PR", Other},
		"a method that begins as PRI":  {"PRINT / HTTP/1.1\r\n\r\n", HTTP1},
		"half a request line":          {"GET /catal", Other},
		"TLS":                          {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Other},
		"PostgreSQL":                   {"\x00\x00\x00\x08\x04\xd2\x16\x2f", Other},
		"Redis":                        {"*1\r\n$4\r\nPING\r\n", Other},
		"Redis inline":                 {"GET key\r\n", Other},
		"SMTP":                         {"EHLO mail.example\r\n", Other},
		"nothing":                      {"", Other},
		"an HTTP answer":               {"HTTP/1.1 200 OK\r\n\r\n", Other},
		"HTTP/2 named in a plain line": {"GET / HTTP/2.0\r\n\r\n", Other},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, Classify([]byte(c.first))) })
	}
}

// An open connection moves where a request begins and nowhere else. Bytes inside a body pass for
// the beginning of a request only if they are a whole request line.
func TestStartsRequest(t *testing.T) {
	for name, c := range map[string]struct {
		bytes string
		want  bool
	}{
		"request": {"POST /orders HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", true},
		// Not allowed, but some clients send it, and the version still ends the line.
		"spaces in the target":      {"GET /a b HTTP/1.1\r\n", true},
		"every character of tchar":  {"!#$%&'*+-.^_`|~09azAZ / HTTP/1.1\r\n", true},
		"longest method":            {strings.Repeat("M", 32) + " / HTTP/1.1\r\n", true},
		"method too long":           {strings.Repeat("M", 33) + " / HTTP/1.1\r\n", false},
		"no method":                 {" / HTTP/1.1\r\n", false},
		"separator in the method":   {"GE(T / HTTP/1.1\r\n", false},
		"no target":                 {"GET HTTP/1.1\r\n", false},
		"empty target":              {"GET  HTTP/1.1\r\n", false},
		"no version":                {"GET /\r\n", false},
		"version of the future":     {"GET / HTTP/1.2\r\n", false},
		"blank after the version":   {"GET / HTTP/1.1 \r\n", false},
		"two returns":               {"GET / HTTP/1.1\r\r\n", false},
		"blank line first":          {"\r\nGET / HTTP/1.1\r\n", false},
		"no end of line":            {"GET / HTTP/1.1", false},
		"a body of JSON":            {"{\"a\": 1,\n\"b\": 2}", false},
		"a chunk's length":          {"1a\r\n", false},
		"the end of a chunked body": {"0\r\n\r\n", false},
		"line that is too long":     {"GET /" + strings.Repeat("a", 64<<10-15) + " HTTP/1.1\r\n", false},
		"line that just fits":       {"GET /" + strings.Repeat("a", 64<<10-16) + " HTTP/1.1\r\n", true},
		"empty":                     {"", false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, StartsRequest([]byte(c.bytes))) })
	}
}

// After a 101 the connection speaks something else, in which no boundaries are looked for.
func TestSwitchesProtocol(t *testing.T) {
	for answer, want := range map[string]bool{
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n": true,
		"HTTP/1.1 101": true,
		"HTTP/1.0 101 Switching Protocols\r\n\r\n": true,
		"HTTP/1.1 100 Continue\r\n\r\n":            false,
		"HTTP/1.1 200 OK\r\n\r\n":                  false,
		"HTTP/1.1 200 101\r\n\r\n":                 false,
		"HTTP/1.1 10":                              false,
		"HTTP/2.0 101":                             false,
		"":                                         false,
	} {
		t.Run(answer, func(t *testing.T) { assert.Equal(t, want, SwitchesProtocol([]byte(answer))) })
	}
}

// FuzzClassify: any pod of the cluster chooses these bytes.
func FuzzClassify(f *testing.F) {
	for _, seed := range []string{
		"", preface, "PRI * ", "GET / HTTP/1.1\r\n\r\n", "\n", " \n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n", "\x16\x03\x01",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := Classify(b)
		assert.Contains(t, []Protocol{HTTP1, HTTP2, Other}, p, "the first bytes decide once and for all")
		assert.False(t, StartsRequest(b) && SwitchesProtocol(b), "one is the client's, the other the server's")
		switch p {
		case HTTP1:
			line, _, ended := strings.Cut(string(b), "\n")
			assert.True(t, ended, "only a whole line is a request line")
			assert.Regexp(t, `^[!-~]+ .+ HTTP/1\.[01]\r?$`, line)
			assert.True(t, StartsRequest([]byte(line+"\nanything")), "what follows the line does not matter")
		case HTTP2:
			assert.True(t, strings.HasPrefix(string(b), "PRI"))
		case Unknown, Other:
			assert.False(t, StartsRequest(b))
		}
	})
}
