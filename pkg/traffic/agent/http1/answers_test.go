package http1

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// However the bytes are cut into reads, Between is said where an answer ends, and nowhere else.
func TestAnswersEndWhereTheyEnd(t *testing.T) {
	for name, c := range map[string]struct{ method, sent string }{
		"with a length": {method: "GET", sent: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"},
		"empty":         {method: "GET", sent: "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"},
		"in chunks": {
			sent: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
				"5;x\r\nhello\r\n7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
			method: "GET",
		},
		"with trailers": {
			sent:   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
			method: "GET",
		},
		"to HEAD": {method: "HEAD", sent: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"},
		"not modified": {
			sent:   "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
			method: "GET",
		},
		"after a 103": {
			sent:   "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
			method: "GET",
		},
		"after a 100": {
			sent:   "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
			method: "PUT",
		},
		"with a long tag": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nETag: " + strings.Repeat("x", 70000) + "\r\n\r\nx",
			method: "GET",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 7, 60, len(c.sent)} {
				if size < 7 && len(c.sent) > 1000 {
					continue
				}
				var a Answers
				require.True(t, a.Between())
				for range 2 { // one connection, two requests
					a.Expect(c.method)
					for rest := c.sent; rest != ""; {
						require.False(t, a.Between(), "in pieces of %d, before %q", size, rest)
						n := min(size, len(rest))
						a.Feed([]byte(rest[:n]))
						rest = rest[n:]
					}
					require.True(t, a.Between(), "in pieces of %d", size)
				}
				a.Expect(c.method)
				a.Expect(c.method)
				a.Feed([]byte(c.sent))
				require.False(t, a.Between(), "one of two")
				a.Feed([]byte(c.sent))
				require.True(t, a.Between())
			}
		})
	}
}

// Where an answer's end cannot be said, it is not said.
func TestAnswersThatAreLost(t *testing.T) {
	for name, sent := range map[string]string{
		"until the end":           "HTTP/1.1 200 OK\r\n\r\nhello",
		"another protocol":        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"no answer":               "220 mail\r\n\r\n",
		"two lengths":             "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
		"a size that is none":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"a chunk without its end": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
		"two answers":             "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			var a Answers
			a.Expect("GET")
			a.Feed([]byte(sent))
			require.False(t, a.Between())
			a.Feed([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
			require.False(t, a.Between(), "nor ever after")
		})
	}
}

// Whatever comes, however it is cut, the ends are those that ReadResponse and CopyBody find.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), false, 5)
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"), true, 50)
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\n"+
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: b\r\n\r\n"), false, 44)
	f.Fuzz(func(t *testing.T, sent []byte, head bool, cut int) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		if cut < 0 || cut > len(sent) {
			return
		}
		var a Answers
		a.Expect(method)
		a.Feed(sent[:cut])
		a.Feed(sent[cut:])

		r := bufio.NewReaderSize(bytes.NewReader(sent), 1<<16)
		for {
			h, err := ReadResponse(r, method)
			if err != nil || h.Status == 101 || h.Framing == UntilClose {
				require.False(t, a.Between())
				return
			}
			if h.Status < 200 {
				continue
			}
			if CopyBody(io.Discard, r, h) != nil {
				require.False(t, a.Between())
				return
			}
			break
		}
		rest, _ := io.ReadAll(r)
		require.Equal(t, len(rest) == 0, a.Between(), "%q remains", rest)
	})
}
