package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// verbatim returns a server that gives every request the same answer. It sends the paths that it
// got, and the error that ended them, to ended.
func verbatim(received chan<- string, answer string) func(net.Conn) {
	return func(c net.Conn) {
		in, got := bufio.NewReader(c), ""
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				received <- got + err.Error()
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			got += r.URL.Path + " "
			if _, err := io.WriteString(c, answer); err != nil {
				received <- got + err.Error()
				return
			}
		}
	}
}

// Some frameworks state the length of an answer twice. Clients understand that and keep the
// connection, so the agent does too.
func TestAnswersWithTwoLengthsKeepTheConnection(t *testing.T) {
	for name, head := range map[string]string{
		"chunks and a length":  "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
		"a length and chunks":  "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
		"chunks of a coding":   "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
		"chunks twice":         "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
		"a length twice":       "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
		"a length in a list":   "Content-Length: 2, 2\r\n\r\nhi",
		"nothing but a length": "Content-Length: 2\r\n\r\nhi",
	} {
		for _, who := range []string{"alice", "app"} {
			t.Run(name+", to "+who, func(t *testing.T) {
				t.Parallel()
				answer := "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n" + head
				received := map[string]chan string{"alice": make(chan string, 10), "app": make(chan string, 10)}
				alice := newLaptop(t, ok, verbatim(received["alice"], answer))
				p := newPod(t, "127.0.0.1",
					serve(t, "127.0.0.1", func(c *net.TCPConn) { verbatim(received["app"], answer)(c) }),
					alice.authority)
				p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
				c := p.dial(t)
				// A body in chunks the passthrough gives away.
				for _, path := range []string{"/1", "/2", "/3"} {
					_, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: a\r\nX-Dev: %s\r\n"+
						"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", path, who)
					require.NoError(t, err)
					all := make([]byte, len(answer))
					_, err = io.ReadFull(c, all)
					require.NoError(t, err, path)
					require.Equal(t, answer, string(all))
				}
				require.NoError(t, c.Close())
				require.Equal(t, "/1 /2 /3 EOF", <-received[who])
			})
		}
	}
}

// If recipients may disagree about the length of an answer, it is the last one on its
// connection: the bytes after it must not reach an upstream before somebody has decided where
// they belong.
func TestAnswersOfUnclearLengthAreTheLast(t *testing.T) {
	for name, head := range map[string]string{
		"two lengths":       "Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
		"a coding, no more": "Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nhi",
		"no number":         "Content-Length: two\r\n\r\nhi",
	} {
		for then, more := range map[string]string{"": "", ", and more is asked": "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"} {
			t.Run(name+then, func(t *testing.T) {
				t.Parallel()
				received := make(chan string, 10)
				alice := newLaptop(t, ok, verbatim(received, "HTTP/1.1 200 OK\r\n"+head))
				p := newPod(t, "127.0.0.1", app(t), alice.authority)
				p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
				c := p.dial(t)
				_, err := io.WriteString(c, "GET /1 HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n")
				require.NoError(t, err)
				answer := "HTTP/1.1 200 OK\r\nConnection: close\r\n" + head
				all := make([]byte, len(answer))
				_, err = io.ReadFull(c, all)
				require.NoError(t, err)
				require.Equal(t, answer, string(all))
				if more == "" {
					require.NoError(t, c.Close())
				} else {
					_, err = io.WriteString(c, more)
					require.NoError(t, err)
					rest, err := io.ReadAll(c)
					assert.NoError(t, err)
					assert.Empty(t, rest)
				}
				require.Equal(t, "/1 EOF", <-received)
			})
		}
	}
}
