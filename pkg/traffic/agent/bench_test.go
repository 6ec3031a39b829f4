package agent

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"testing"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// BenchmarkHTTP1Request measures one request and its answer over loopback, on a connection that is
// kept open: through the passthrough, which is the plain way to the app; through the exchange to
// the app, beside a personal intercept; and through the exchange to a laptop.
func BenchmarkHTTP1Request(b *testing.B) {
	const request = "GET / HTTP/1.1\r\nHost: catalog\r\nX-Dev: "
	for _, bench := range []struct {
		name     string
		who      string
		personal bool
	}{
		{name: "passthrough to the app", who: "nobody"},
		{name: "exchange to the app", who: "nobody", personal: true},
		{name: "exchange to the laptop", who: "alice", personal: true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			m := &fakeLaptop{authority: x509.NewCertPool()}
			if bench.personal {
				m = newLaptop(b, ok, answers("laptop"))
			}
			port := serve(b, "127.0.0.1", func(c *net.TCPConn) { answers("app")(c) })
			p := newPod(b, "127.0.0.1", port, m.authority)
			if bench.personal {
				p.table.Set([]*agentv1.Intercept{p.person("alice", m.address)})
			}
			c := dial(b, p.address)
			in := bufio.NewReader(c)
			sent := []byte(request + bench.who + "\r\n\r\n")
			if bench.personal {
				// A body in chunks makes the passthrough hand the connection over.
				sent = bytes.Replace(append(sent, "0\r\n\r\n"...), []byte("\r\n\r\n"),
					[]byte("\r\nTransfer-Encoding: chunked\r\n\r\n"), 1)
				sent = bytes.Replace(sent, []byte("GET"), []byte("POST"), 1)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(sent); err != nil {
					b.Fatal(err)
				}
				answer, err := http.ReadResponse(in, nil)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				_ = answer.Body.Close()
			}
		})
	}
}
