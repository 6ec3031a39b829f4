package suite

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// An intercept that would have to read TLS without a certificate is refused: before any rollout if
// the cluster's objects say that the port speaks TLS, or else after the agents have tried.
// Everybody is still answered. The port as a whole can be intercepted.
func TestTLSPort(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Web), kit.Uses(kit.Machine))
	directory, roots := kit.DeployWeb(t)
	kit.Connect(t)
	clients := kit.TLSClients(t, roots)
	everybody := func(edition string) {
		t.Helper()
		for protocol, client := range clients {
			page, err := kit.AskWeb(client, "alice")
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf(`{"edition":%q,"protocol":%q,"name":"web.shop","body":"body"}`, edition,
				protocol), page)
		}
	}
	for _, client := range clients {
		kit.Eventually(t, func() bool { _, err := kit.AskWeb(client, ""); return err == nil },
			"the nodes know the service")
	}
	everybody("cluster")
	port := strconv.Itoa(kit.FreePorts(t, 1))
	for service, how := range map[string]string{"web-said": "its appProtocol is https", "web": "the agent tried it"} {
		for _, flags := range [][]string{{"--header", "x-dev=alice"}, {"--mode", "wiretap"}} {
			out, err := kit.Run("detour", append([]string{"intercept", service, "--port", port}, flags...)...)
			require.Error(t, err)
			require.Contains(t, out, "port 8443 of deployment/web speaks TLS ("+how+")")
			everybody("cluster")
		}
	}
	require.NotContains(t, kit.Kubectl(t, "-n", "shop", "get", "intercepts", "-o", "name"), "/web",
		"what was refused is gone")

	out, err := kit.Run("detour", "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret",
		"other")
	require.Error(t, err)
	require.Contains(t, out, "the pods of deployment/web do not use Secret other")
	require.Contains(t, out, "(the pods use web-tls)")

	laptop := kit.StartEcho(t, "-https=127.0.0.1:"+port, "-certificates", directory, "-edition", "laptop")
	kit.Eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	kit.Detour(t, "intercept", "web", "--port", port)
	for _, client := range clients {
		client.CloseIdleConnections() // an open connection stays with its edition
	}
	everybody("laptop")
	kit.Detour(t, "leave", "web")
	for _, client := range clients {
		client.CloseIdleConnections()
	}
	everybody("cluster")

	// With the pods' certificate the agents read the requests.
	out = kit.Detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls")
	require.Contains(t, out, "try: curl -k -H 'x-dev: alice' https://web.shop/")
	require.NotContains(t, out, "warning")
	for _, client := range clients {
		client.CloseIdleConnections()
	}
	mine := func(want string) {
		t.Helper()
		for protocol, client := range clients {
			for range 5 {
				for who, edition := range map[string]string{"alice": want, "carol": "cluster"} {
					page, err := kit.AskWeb(client, who)
					require.NoError(t, err)
					require.Equal(t, fmt.Sprintf(`{"edition":%q,"protocol":%q,"name":"web.shop","body":"body"}`,
						edition, protocol), page)
				}
			}
		}
	}
	mine("laptop")
	laptop()
	for _, client := range clients {
		kit.Eventually(t, func() bool {
			page, err := kit.AskWeb(client, "alice")
			return err == nil && kit.EditionOf(page) == "cluster"
		})
	}
	mine("cluster")
	kit.Detour(t, "leave", "web")

	kit.Serve(t, port, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"edition":"laptop"}`) })
	out = kit.Detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls")
	require.Contains(t, out, "warning: the process on local port "+port+" does not speak TLS")
	mine("cluster")
	kit.Detour(t, "leave", "web")
	kit.Detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls",
		"--local-plaintext")
	for _, client := range clients {
		page, err := kit.AskWeb(client, "alice")
		require.NoError(t, err)
		require.Equal(t, "laptop", kit.EditionOf(page))
		page, err = kit.AskWeb(client, "carol")
		require.NoError(t, err)
		require.Equal(t, "cluster", kit.EditionOf(page))
	}
	kit.Detour(t, "leave", "web")

	// An HTTP/1 process answers and closes before it has read the body. An HTTP/2 client still gets
	// the response.
	port = serveEarlyResponse(t)
	kit.Detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls",
		"--local-plaintext")
	for range 5 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://web.shop/",
			bytes.NewReader(make([]byte, 4<<20)))
		require.NoError(t, err)
		r.Header.Set("x-dev", "alice")
		answer, err := clients["HTTP/2.0"].Do(r)
		require.NoError(t, err)
		page, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		require.NoError(t, err)
		require.Equal(t, "413 laptop", fmt.Sprint(answer.StatusCode, " ", string(page)))
	}
	kit.Detour(t, "leave", "web")
}

// serveEarlyResponse answers each request before it has read the body, closes the connection, and
// returns its port on the laptop.
func serveEarlyResponse(t *testing.T) (port string) {
	t.Helper()
	l, port := kit.Listen(t, "0")
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c,
					"HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\nConnection: close\r\n\r\nlaptop")
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return port
}
