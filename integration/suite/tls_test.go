package suite

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// newCertificate writes tls.crt and tls.key for the service web into a directory.
func newCertificate(t *testing.T) (directory string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: serial, DNSNames: []string{"web.shop"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	directory, roots = t.TempDir(), x509.NewCertPool()
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	require.True(t, roots.AppendCertsFromPEM(public))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "tls.crt"), public, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return directory, roots
}

// secureService deploys the service web with a certificate of its own.
func secureService(t *testing.T) (directory string, roots *x509.CertPool) {
	t.Helper()
	directory, roots = newCertificate(t)
	manifest := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/secure.yaml")
	kubectl(t, "-n", "shop", "create", "secret", "tls", "web-tls", "--cert", filepath.Join(directory, "tls.crt"), "--key", filepath.Join(directory, "tls.key"))
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "secret", "web-tls") })
	kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kubectl(t, "delete", "-f", manifest) })
	kubectl(t, "-n", "shop", "rollout", "status", "deployment/web", "--timeout=120s")
	return directory, roots
}

// secureClients are clients of either version of HTTP over TLS that trust roots.
func secureClients(t *testing.T, roots *x509.CertPool) map[string]*http.Client {
	t.Helper()
	all := map[string]*http.Client{}
	for name, protocols := range map[string]*http.Protocols{"HTTP/1.1": new(http.Protocols), "HTTP/2.0": new(http.Protocols)} {
		protocols.SetHTTP1(name == "HTTP/1.1")
		protocols.SetHTTP2(name == "HTTP/2.0")
		client := &http.Client{Transport: &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{RootCAs: roots}}}
		t.Cleanup(client.CloseIdleConnections)
		all[name] = client
	}
	return all
}

// askSecure asks the service web, with the mark of a developer.
func askSecure(client *http.Client, who string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://web.shop/", bytes.NewReader([]byte("body")))
	if err != nil {
		return "", err
	}
	r.Header.Set("x-dev", who)
	answer, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	return string(page), err
}

// Who would have to look into TLS without the means is refused, before anything is rolled out where the cluster's objects say that it is
// TLS, and else after the agents have tried. Everybody goes on to be answered; all of the port may be taken.
func TestTLSPort(t *testing.T) {
	t.Parallel()
	directory, roots := secureService(t)
	connected(t)
	clients := secureClients(t, roots)
	everybody := func(edition string) {
		t.Helper()
		for protocol, client := range clients {
			page, err := askSecure(client, "alice")
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf(`{"edition":%q,"protocol":%q,"name":"web.shop","body":"body"}`, edition, protocol), page)
		}
	}
	for _, client := range clients {
		require.Eventually(t, func() bool { _, err := askSecure(client, ""); return err == nil }, patience, 50*time.Millisecond, "the nodes know the service")
	}
	everybody("cluster")
	port := strconv.Itoa(freePorts(t, 1))
	for service, how := range map[string]string{"web-said": "its appProtocol is https", "web": "the agent tried it"} {
		for _, flags := range [][]string{{"--header", "x-dev=alice"}, {"--mode", "wiretap"}} {
			out, err := command("detour", append([]string{"intercept", service, "--port", port}, flags...)...)
			require.Error(t, err)
			require.Contains(t, out, "port 8443 of deployment/web speaks TLS ("+how+")")
			everybody("cluster")
		}
	}
	require.NotContains(t, kubectl(t, "-n", "shop", "get", "intercepts", "-o", "name"), "/web", "what was refused is gone")

	out, err := command("detour", "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "other")
	require.Error(t, err)
	require.Contains(t, out, "the pods of deployment/web do not use Secret other")
	require.Contains(t, out, "(the pods use web-tls)")

	laptop := startEcho(t, "-https=127.0.0.1:"+port, "-certificates", directory, "-edition", "laptop")
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, patience, 20*time.Millisecond)
	detour(t, "intercept", "web", "--port", port)
	for _, client := range clients {
		client.CloseIdleConnections() // what was open stays where it was
	}
	everybody("laptop")
	detour(t, "leave", "web")
	for _, client := range clients {
		client.CloseIdleConnections()
	}
	everybody("cluster")

	// With the pods' certificate their agents look inside.
	out = detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls")
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
					page, err := askSecure(client, who)
					require.NoError(t, err)
					require.Equal(t, fmt.Sprintf(`{"edition":%q,"protocol":%q,"name":"web.shop","body":"body"}`, edition, protocol), page)
				}
			}
		}
	}
	mine("laptop")
	laptop()
	for _, client := range clients {
		require.Eventually(t, func() bool {
			page, err := askSecure(client, "alice")
			return err == nil && editionOf(page) == "cluster"
		}, patience, 20*time.Millisecond)
	}
	mine("cluster")
	detour(t, "leave", "web")

	laptopServer(t, port, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"edition":"laptop"}`) })
	out = detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls")
	require.Contains(t, out, "warning: the process on local port "+port+" does not speak TLS")
	mine("cluster")
	detour(t, "leave", "web")
	detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls", "--local-plaintext")
	for _, client := range clients {
		page, err := askSecure(client, "alice")
		require.NoError(t, err)
		require.Equal(t, "laptop", editionOf(page))
		page, err = askSecure(client, "carol")
		require.NoError(t, err)
		require.Equal(t, "cluster", editionOf(page))
	}
	detour(t, "leave", "web")

	// A process of HTTP/1 that answers and closes before it has read a body: a client of HTTP/2 gets the answer.
	port = hasty(t)
	detour(t, "intercept", "web", "--port", port, "--header", "x-dev=alice", "--tls-secret", "web-tls", "--local-plaintext")
	for range 5 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://web.shop/", bytes.NewReader(make([]byte, 4<<20)))
		require.NoError(t, err)
		r.Header.Set("x-dev", "alice")
		answer, err := clients["HTTP/2.0"].Do(r)
		require.NoError(t, err)
		page, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		require.NoError(t, err)
		require.Equal(t, "413 laptop", fmt.Sprint(answer.StatusCode, " ", string(page)))
	}
	detour(t, "leave", "web")
}

// hasty answers each request before it has read the body, closes the connection, and returns the port on the laptop.
func hasty(t *testing.T) (port string) {
	t.Helper()
	l, port := laptopListener(t, "0")
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\nConnection: close\r\n\r\nlaptop")
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return port
}

// startEcho runs the echo service on the laptop and returns how to end it.
func startEcho(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, filepath.Join(os.Getenv("DETOUR_ROOT"), "bin", "echo"), args...)
	require.NoError(t, cmd.Start())
	stop = func() { cancel(); _ = cmd.Wait() }
	t.Cleanup(stop)
	return stop
}
