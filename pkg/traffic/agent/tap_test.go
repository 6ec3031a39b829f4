package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/agent/copies"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// A wiretap's laptop gets a copy of each request, with its body, and nobody sees its answers.
func TestWiretapGetsCopies(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			serveApp := handler(t, says("app"))
			copies := make(chan string, 100)
			carol := newLaptop(t, ok, handler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				copies <- r.Method + " " + r.RequestURI + " " + string(body)
				w.WriteHeader(http.StatusTeapot)
			})))
			p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), carol.authority)
			everything := &agentv1.Intercept{
				Uid: "tap", Port: uint32(p.port), RelayAddress: carol.address, Token: []byte("secret"), Wiretap: true,
			}
			p.table.Set([]*agentv1.Intercept{everything})
			for i := range 5 {
				body := strings.Repeat("x", i*20000)
				answer := p.ask(t, transport, http.MethodPost, fmt.Sprintf("/%d?a=b", i), "", strings.NewReader(body))
				assert.Equal(t, fmt.Sprintf("app /%d?a=b %s", i, body), text(t, answer))
				assert.Equal(t, fmt.Sprintf("POST /%d?a=b %s", i, body), <-copies)
			}
			marked := p.person("alice", carol.address)
			marked.Wiretap = true
			p.table.Set([]*agentv1.Intercept{marked})
			assert.Equal(t, "app /no ", text(t, p.ask(t, transport, http.MethodGet, "/no", "", nil)))
			assert.Equal(t, "app /yes ", text(t, p.ask(t, transport, http.MethodGet, "/yes", "alice", nil)))
			assert.Equal(t, "GET /yes ", <-copies)
		})
	}
}

// A laptop that reads nothing, or is unreachable, neither delays nor changes the original.
func TestWiretapNeverDelaysRequests(t *testing.T) {
	t.Parallel()
	never := make(chan struct{})
	stuck := newLaptop(t, ok, func(net.Conn) { <-never })
	t.Cleanup(func() { close(never) })
	for version, transport := range transports(t) {
		for name, relay := range map[string]string{
			"takes nothing": stuck.address, "is not there": fmt.Sprintf("127.0.0.1:%d", nobody(t)),
		} {
			t.Run(version+", a laptop that "+name, func(t *testing.T) {
				serveApp := handler(t, says("app"))
				p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }),
					stuck.authority)
				p.table.Set([]*agentv1.Intercept{{
					Uid: "tap", Port: uint32(p.port), RelayAddress: relay, Token: []byte("secret"), Wiretap: true,
				}})
				body := bytes.Repeat([]byte("x"), 4<<20)
				for range 3 {
					answer := p.ask(t, transport, http.MethodPost, "/", "", bytes.NewReader(body))
					got, err := io.ReadAll(answer.Body)
					require.NoError(t, err)
					require.Len(t, got, len("app / ")+len(body))
				}
			})
		}
	}
}

// Lost copies are counted. Copies that the process did not want or did not read are not.
func TestLostCopiesAreCounted(t *testing.T) {
	never := make(chan struct{})
	stuck := newLaptop(t, ok, func(net.Conn) { <-never })
	t.Cleanup(func() { close(never) })
	var looked atomic.Int64
	picky := newLaptop(t, ok, handler(t, http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { looked.Add(1); w.WriteHeader(http.StatusTeapot) })))
	stuck.authority.AddCert(picky.certificate)
	old := newLaptop(t, ok, func(c net.Conn) { // speaks HTTP/1 only
		for in := bufio.NewReader(c); ; looked.Add(1) {
			r, err := http.ReadRequest(in)
			if err != nil || r.ProtoMajor != 1 {
				_, _ = io.WriteString(c,
					"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	stuck.authority.AddCert(old.certificate)
	for version, transport := range transports(t) {
		for name, c := range map[string]struct {
			relay string
			size  int
			want  uint64
		}{
			"that is not there":     {fmt.Sprintf("127.0.0.1:%d", nobody(t)), 10, 3},
			"that takes nothing":    {stuck.address, 12 << 20, 3},
			"that only has a look":  {picky.address, 10, 0},
			"that speaks HTTP/1":    {old.address, 10, map[string]uint64{"HTTP/2": 3}[version]},
			"that reads no body up": {picky.address, 50 << 10, 0}, // all three together fit into what may wait
		} {
			t.Run(version+", a laptop "+name, func(t *testing.T) {
				serveApp := handler(t, says("app"))
				p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }),
					stuck.authority)
				p.table.Set([]*agentv1.Intercept{{
					Uid: "tap", Port: uint32(p.port), RelayAddress: c.relay, Token: []byte("secret"), Wiretap: true,
				}})
				looked.Store(0)
				for range 3 {
					_ = text(t, p.ask(t, transport, http.MethodPost, "/sum", "", bytes.NewReader(make([]byte, c.size))))
				}
				dropped := func() uint64 { return p.report.Dropped("tap") }
				assert.Eventually(t, func() bool { return dropped()+uint64(looked.Load()) == 3 }, patience,
					time.Millisecond)
				assert.Equal(t, c.want, dropped())
			})
		}
	}
}

// A laptop that reads its copies gets all of them, however many there are, and then the agent
// holds no memory for it.
func TestCopiesFreeTheirMemory(t *testing.T) {
	var got atomic.Int64
	carol := newLaptop(t, ok, handler(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Add(n)
	})))
	serveApp := handler(t, says("app"))
	p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), carol.authority)
	p.table.Set([]*agentv1.Intercept{{
		Uid: "tap", Port: uint32(p.port), RelayAddress: carol.address, Token: []byte("secret"), Wiretap: true,
	}})
	transport := transports(t)["HTTP/1.1"]
	const size = copies.MaxBuffered / 2
	for i := range int64(2 * copies.MaxTotal / size) {
		_ = text(t, p.ask(t, transport, http.MethodPost, "/sum", "", bytes.NewReader(make([]byte, size))))
		require.Eventually(t, func() bool { return p.limits.copies.Used() == 0 && got.Load() == (i+1)*size }, patience,
			time.Millisecond)
	}
}
