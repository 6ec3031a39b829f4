package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func reader(s string) *bufio.Reader { return bufio.NewReaderSize(strings.NewReader(s), 64) }

func TestReadRequest(t *testing.T) {
	for name, c := range map[string]struct {
		sent    string
		framing Framing
		length  int64
		close   bool
	}{
		"plain": {sent: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", framing: NoBody},
		"with a length": {
			sent:    "POST /x?y HTTP/1.1\r\nHost: a\r\ncontent-length:  5 \r\n\r\n",
			framing: Length, length: 5,
		},
		"with no length to speak of": {
			sent:    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
			framing: NoBody,
		},
		"in chunks": {
			sent:    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
			framing: Chunked,
		},
		"the last": {
			sent:    "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, Close\r\n\r\n",
			framing: NoBody, close: true,
		},
		"HTTP/1.0": {sent: "GET / HTTP/1.0\r\n\r\n", framing: NoBody, close: true},
		"HTTP/1.0 that goes on": {
			sent:    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
			framing: NoBody,
		},
		"a large head": {
			sent:    "GET / HTTP/1.1\r\nHost: a\r\nCookie: " + strings.Repeat("x", 60000) + "\r\n\r\n",
			framing: NoBody,
		},
		"an empty value": {sent: "GET / HTTP/1.1\r\nHost:\r\nX-A:\r\n\r\n", framing: NoBody},
	} {
		t.Run(name, func(t *testing.T) {
			r := reader(c.sent + "rest")
			h, err := ReadRequest(r, unlimited)
			require.NoError(t, err)
			assert.Equal(t, c.sent, string(h.Raw))
			assert.Equal(t, c.framing, h.Framing)
			assert.Equal(t, c.length, h.Length)
			assert.Equal(t, c.close, h.Close)
			rest, _ := io.ReadAll(r)
			assert.Equal(t, "rest", string(rest), "nothing else is taken")
		})
	}
}

func TestReadResponse(t *testing.T) {
	for name, c := range map[string]struct {
		method, sent string
		status       int
		framing      Framing
		close        bool
	}{
		"with a length": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
			method: "GET", status: 200, framing: Length,
		},
		"without a reason": {
			sent:   "HTTP/1.1 204\r\n\r\n",
			method: "GET", status: 204, framing: NoBody,
		},
		"to HEAD": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
			method: "HEAD", status: 200, framing: NoBody,
		},
		"not modified": {
			sent:   "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
			method: "GET", status: 304, framing: NoBody,
		},
		"to be continued": {
			sent:   "HTTP/1.1 100 Continue\r\n\r\n",
			method: "PUT", status: 100, framing: NoBody,
		},
		"in chunks": {
			sent:   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
			method: "GET", status: 200, framing: Chunked,
		},
		"until the end": {
			sent:   "HTTP/1.1 200 OK\r\n\r\n",
			method: "GET", status: 200, framing: UntilClose, close: true,
		},
		"with two lengths": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
			method: "GET", status: 200, framing: UntilClose, close: true,
		},
		"with two lengths in one": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
			method: "GET", status: 200, framing: UntilClose, close: true,
		},
		"with a length twice": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
			method: "GET", status: 200, framing: Length,
		},
		"with a length in a list": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
			method: "GET", status: 200, framing: Length,
		},
		"with a length that is none": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
			method: "GET", status: 200, framing: UntilClose, close: true,
		},
		"with a length and chunks": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
			method: "GET", status: 200, framing: Chunked,
		},
		"in chunks within chunks": {
			sent:   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
			method: "GET", status: 200, framing: Chunked,
		},
		"in chunks of a coding": {
			sent:   "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n",
			method: "GET", status: 200, framing: Chunked,
		},
		"in a coding that is later": {
			sent:   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
			method: "GET", status: 200, framing: UntilClose, close: true,
		},
		"in no coding": {
			sent:   "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n",
			method: "GET", status: 200, framing: UntilClose, close: true,
		},
		"the last": {
			sent:   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
			method: "GET", status: 200, framing: Length, close: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := ReadResponse(reader(c.sent), c.method)
			require.NoError(t, err)
			assert.Equal(t, c.status, h.Status)
			assert.Equal(t, c.framing, h.Framing)
			assert.Equal(t, c.close, h.Close)
			assert.Equal(t, c.framing == UntilClose && name != "until the end", h.Vague)
		})
	}
	_, err := ReadResponse(reader("220 mail\r\n"), "GET")
	assert.ErrorIs(t, err, ErrUnclear)
}

// A body is passed on byte by byte to where it ends, and not further.
func TestCopyBody(t *testing.T) {
	for name, c := range map[string]struct {
		head *Head
		body string
		err  error
	}{
		"length": {head: &Head{Framing: Length, Length: 300}, body: strings.Repeat("x", 300)},
		"too short": {
			body: "",
			head: &Head{Framing: Length, Length: 1000}, err: io.ErrUnexpectedEOF,
		},
		"chunks": {
			body: "5;ext=\"a;b\"\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
			head: &Head{Framing: Chunked},
		},
		"trailers":            {head: &Head{Framing: Chunked}, body: "1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n"},
		"a size that is none": {head: &Head{Framing: Chunked}, body: "0x1\r\n", err: ErrUnclear},
		"a size with a sign":  {head: &Head{Framing: Chunked}, body: "+1\r\n", err: ErrUnclear},
		"a size that is too big": {
			body: "ffffffffffffffff\r\n",
			head: &Head{Framing: Chunked}, err: ErrUnclear,
		},
		"a size before the space": {head: &Head{Framing: Chunked}, body: " 1\r\n", err: ErrUnclear},
		"a chunk without its end": {
			body: "1\r\nxy\r\n",
			head: &Head{Framing: Chunked}, err: ErrUnclear,
		},
		"a bare line feed": {head: &Head{Framing: Chunked}, body: "1\n", err: ErrUnclear},
		"nothing":          {head: &Head{}, body: ""},
	} {
		t.Run(name, func(t *testing.T) {
			rest := "GET"
			if c.err != nil {
				rest = ""
			}
			r := reader(c.body + rest)
			var out bytes.Buffer
			err := CopyBody(&out, r, c.head)
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, c.body, out.String())
			left, _ := io.ReadAll(r)
			assert.Equal(t, rest, string(left))
		})
	}
}

// What we call clear, the standard library reads in the same way: the same request, the same body,
// the same rest.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcrest",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\nrest",
		"GET http://a/b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		mine := bufio.NewReader(bytes.NewReader(sent))
		h, err := ReadRequest(mine, unlimited)
		if !bytes.HasPrefix(sent, h.Raw) {
			t.Fatal("what was taken is not what was sent")
		}
		if parsed, perr := ParseRequest(sent); perr == nil || err == nil {
			if perr != nil || err != nil || !reflect.DeepEqual(parsed, h) {
				t.Fatalf("parsed %+v (%v), read %+v (%v)", parsed, perr, h, err)
			}
		}
		slow, serr := ReadRequest(slowly(sent), unlimited)
		same(t, slow, serr, h, err)
		if err != nil {
			return
		}
		var body bytes.Buffer
		if err := CopyBody(&body, mine, h); err != nil {
			if errors.Is(err, ErrUnclear) && !bytes.HasPrefix(sent[len(h.Raw):], body.Bytes()) {
				t.Fatal("a body changed on its way")
			}
			return
		}
		left, _ := io.ReadAll(mine)
		if !bytes.Equal(sent, append(append(bytes.Clone(h.Raw), body.Bytes()...), left...)) {
			t.Fatal("bytes were lost")
		}

		theirs := bufio.NewReader(bytes.NewReader(sent))
		r, err := http.ReadRequest(theirs)
		if err != nil {
			return // stricter than we are, in its URLs
		}
		if _, err := io.ReadAll(r.Body); err != nil {
			t.Skip() // stricter than we are, in its trailers
		}
		rest, _ := io.ReadAll(theirs)
		if r.Method != h.Method || r.RequestURI != h.Target || !bytes.Equal(left, rest) {
			t.Fatalf("%q: we left %q, the library %q", sent, left, rest)
		}
	})
}

// slowly gives what was sent byte by byte: no head is whole at once.
func slowly(sent []byte) *bufio.Reader {
	return bufio.NewReader(iotest.OneByteReader(bytes.NewReader(sent)))
}

func same(t *testing.T, slow *Head, serr error, fast *Head, err error) {
	t.Helper()
	if (serr == nil) != (err == nil) || errors.Is(serr, ErrUnclear) != errors.Is(err, ErrUnclear) ||
		!reflect.DeepEqual(slow, fast) {
		t.Fatalf("byte by byte %+v (%v), at once %+v (%v)", slow, serr, fast, err)
	}
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), "GET")
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"), "HEAD")
	f.Fuzz(func(t *testing.T, sent []byte, method string) {
		r := bufio.NewReader(bytes.NewReader(sent))
		h, err := ReadResponse(r, method)
		if !bytes.HasPrefix(sent, h.Raw) {
			t.Fatal("what was taken is not what was sent")
		}
		slow, serr := ReadResponse(slowly(sent), method)
		same(t, slow, serr, h, err)
		if err != nil {
			return
		}
		var body bytes.Buffer
		_ = CopyBody(&body, r, h)
		if !bytes.HasPrefix(sent[len(h.Raw):], body.Bytes()) {
			t.Fatal("a body changed on its way")
		}
	})
}
