package agent

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// witness is a real server that records each request that it understood.
type witness struct {
	mu  sync.Mutex
	saw []string
}

func (w *witness) ServeHTTP(answer http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s host %q length %d %v close %t body %q", r.Method, r.RequestURI, r.Proto, r.Host,
		r.ContentLength, r.TransferEncoding, r.Close, body)
	if err != nil {
		b.WriteString(" cut")
	}
	for _, set := range []http.Header{r.Header, r.Trailer} {
		for _, name := range slices.Sorted(maps.Keys(set)) {
			fmt.Fprintf(&b, " %s=%q", name, set[name])
		}
	}
	w.mu.Lock()
	w.saw = append(w.saw, b.String())
	w.mu.Unlock()
	fmt.Fprintf(answer, "%s %s %d", r.Method, r.RequestURI, len(body))
}

func (w *witness) taken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.saw
	w.saw = nil
	return all
}

var dates = regexp.MustCompile(`(?m)^Date: .*\r\n`)

// exchanged sends bytes and returns all that comes back, and whether that ended with a reset,
// which may take some of it along.
func exchanged(t *testing.T, address, sent string) (answer string, reset bool) {
	t.Helper()
	c := dial(t, address)
	_, err := io.WriteString(c, sent)
	require.NoError(t, err)
	_ = c.CloseWrite() // the server may have closed by now
	got, err := io.ReadAll(c)
	if !errors.Is(err, syscall.ECONNRESET) {
		require.NoError(t, err)
	}
	return dates.ReplaceAllString(string(got), ""), err != nil
}

// Bytes that a client sends to confuse a proxy mean to the app what they would mean without the
// agent: the same requests with the same bodies, and the same answers. The app and alice's
// laptop run the same server, so that together they must see what the app sees alone.
func TestNothingIsSmuggled(t *testing.T) {
	w := &witness{}
	serveApp := handler(t, w)
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) })
	alice := newLaptop(t, ok, handler(t, w))
	go func() { // ends with the test
		for {
			select {
			case <-alice.headers:
			case <-t.Context().Done():
				return
			}
		}
	}()
	p := newPod(t, "127.0.0.1", port, alice.authority)
	p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
	direct := fmt.Sprintf("127.0.0.1:%d", port)

	const hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n"
	framings := map[string]string{
		"CL.TE":                        "Content-Length: %[1]d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE.CL":                        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%[3]x\r\n%[2]s\r\n0\r\n\r\n",
		"TE.TE, one unknown":           "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n%[2]s",
		"TE with a tab":                "Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE with a vertical tab":       "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE in quotes":                 "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n%[2]s",
		"TE in capitals":               "Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n%[2]s",
		"TE twice in a line":           "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE after gzip":                "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE with a space before colon": "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE folded":                    "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE hidden by a bare CR":       "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE hidden by a bare LF":       "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%[2]s",
		"TE with a zero byte":          "Transfer-Encoding\x00: chunked\r\n\r\n0\r\n\r\n%[2]s",
		"CL.0":                         "Content-Length: 0\r\n\r\n%[2]s",
		"CL twice, the same":           "Content-Length: %[1]d\r\nContent-Length: %[1]d\r\n\r\n%[2]s",
		"CL twice, different":          "Content-Length: 0\r\nContent-Length: %[1]d\r\n\r\n%[2]s",
		"CL in a list":                 "Content-Length: %[1]d, %[1]d\r\n\r\n%[2]s",
		"CL with a plus":               "Content-Length: +%[1]d\r\n\r\n%[2]s",
		"CL with a minus":              "Content-Length: -%[1]d\r\n\r\n%[2]s",
		"CL with zeros":                "Content-Length: 0000%[1]d\r\n\r\n%[2]s",
		"CL in hex":                    "Content-Length: 0x%[1]x\r\n\r\n%[2]s",
		"CL with an underscore":        "Content-Length: 1_0\r\n\r\n%[2]s",
		"CL with spaces":               "Content-Length:   %[1]d \t \r\n\r\n%[2]s",
		"CL that is empty":             "Content-Length:\r\n\r\n%[2]s",
		"CL that is huge":              "Content-Length: 99999999999999999999\r\n\r\n%[2]s",
		"CL past the end":              "Content-Length: 100000\r\n\r\n%[2]s",
		"no length at all":             "\r\n%[2]s",
		"chunk size with 0x":           "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n%[2]s",
		"chunk size with a sign":       "Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n%[2]s",
		"chunk size with a space":      "Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n%[2]s",
		"chunk size that wraps":        "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\na\r\n0\r\n\r\n%[2]s",
		"chunk size that is empty":     "Transfer-Encoding: chunked\r\n\r\n\r\na\r\n0\r\n\r\n%[2]s",
		"chunk longer than it says":    "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n%[2]s",
		"chunk lines with LF":          "Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n%[2]s",
		"chunk extension with LF":      "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n%[2]s",
		"chunk extension with CR":      "Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\na\r\n0\r\n\r\n%[2]s",
		"chunk extension in quotes":    "Transfer-Encoding: chunked\r\n\r\n1;a=\"\r\nb\"\r\na\r\n0\r\n\r\n%[2]s",
		"last chunk of several zeros":  "Transfer-Encoding: chunked\r\n\r\n000\r\n\r\n%[2]s",
		"chunks in many zeros":         "Transfer-Encoding: chunked\r\n\r\n00000000000000000001\r\na\r\n0\r\n\r\n%[2]s",
		"trailers that look like more": "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\nX-Dev: alice\r\n\r\n%[2]s",
		"a trailer that is none":       "Transfer-Encoding: chunked\r\n\r\n0\r\nGET /hidden HTTP/1.1\r\nX-Dev: alice\r\n\r\n",
		"a trailer folded":             "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n z\r\n\r\n%[2]s",
		"LF after the last chunk":      "Transfer-Encoding: chunked\r\n\r\n0\r\n\n%[2]s",
		"a header injected by CR":      "X-A: b\rX-Dev: alice\r\nContent-Length: 0\r\n\r\n%[2]s",
		"a header without a colon":     "X-Dev alice\r\nContent-Length: 0\r\n\r\n%[2]s",
		"a header without a name":      ": alice\r\nContent-Length: 0\r\n\r\n%[2]s",
		"a header name with a space":   "X Dev: alice\r\nContent-Length: 0\r\n\r\n%[2]s",
		"a header in UTF-8":            "X-Dév: alice\r\nContent-Length: 0\r\n\r\n%[2]s",
		"connection names the mark":    "Connection: X-Dev, Content-Length\r\nContent-Length: 0\r\n\r\n%[2]s",
		"an upgrade with a body":       "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %[1]d\r\n\r\n%[2]s",
		"expectation that is none":     "Expect: more\r\nContent-Length: 0\r\n\r\n%[2]s",
	}
	starts := map[string]string{
		"POST / HTTP/1.1\r\nHost: a\r\n":                                           "",
		"POST / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n":                           "of alice, ",
		"GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n":                            "GET of alice, ",
		"POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nX-Dev: alice\r\n": "HTTP/1.0 of alice, ",
		"HEAD / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n":                           "HEAD of alice, ",
	}
	whole := map[string]string{
		"a request line with LF":       "GET / HTTP/1.1\nHost: a\nX-Dev: alice\n\n" + hidden,
		"empty lines before":           "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"empty lines between":          "GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n\r\n" + hidden,
		"two spaces":                   "GET  / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"a tab":                        "GET\t/\tHTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"a space in the target":        "GET /a b HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"a request line injected":      "GET / HTTP/1.1\rX-Dev: alice\r\nHost: a\r\n\r\n" + hidden,
		"no version":                   "GET /\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"version 1.2":                  "GET / HTTP/1.2\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"version 2.0":                  "GET / HTTP/2.0\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"the preface of HTTP/2, later": "GET / HTTP/1.1\r\nHost: a\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"no host":                      "GET / HTTP/1.1\r\nX-Dev: alice\r\n\r\n" + hidden,
		"two hosts":                    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nX-Dev: alice\r\n\r\n" + hidden,
		"another host in the target":   "GET http://b/ HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"a method in small letters":    "get / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"a first line that is folded":  "GET / HTTP/1.1\r\n X-Dev: alice\r\nHost: a\r\n\r\n" + hidden,
		"a head that ends with LF":     "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\n" + hidden,
		"a head that ends with CR CR":  "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\r\n" + hidden,
		"a mark that is cut by a zero": "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\x00bob\r\n\r\n" + hidden,
		"CONNECT":                      "CONNECT b:80 HTTP/1.1\r\nHost: b\r\nX-Dev: alice\r\n\r\n" + hidden,
		"all of a server":              "OPTIONS * HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n" + hidden,
		"the last of two says close": "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n" +
			"Connection: keep-alive\r\nConnection: close\r\n\r\n" + hidden,
		"half a request after a whole":  "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\nGET /half HTTP/1.1\r\nHost: a\r\nX-",
		"a length and less of the body": "POST / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\nContent-Length: 10\r\n\r\nabc",
	}
	for name, rest := range framings {
		for start, of := range starts {
			whole[of+name] = start + fmt.Sprintf(rest+"%[4]s", len(hidden), hidden, len(hidden), "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(whole)) {
		t.Run(name, func(t *testing.T) {
			sent := whole[name]
			resets := 0
			for range 5 {
				answer, reset := exchanged(t, direct, sent)
				saw := w.taken()
				through, resetThrough := exchanged(t, p.address, sent)
				assert.Equal(t, saw, w.taken(), "what was understood of %q", sent)
				if !reset && !resetThrough {
					assert.Equal(t, answer, through, "what was answered to %q", sent)
					return
				}
				if reset {
					resets++
				}
			}
			assert.NotZero(t, resets, "only the agent resets after %q", sent)
		})
	}
}
