package netx

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// counted is a connection that counts its writes, and fails once it is told to.
type counted struct {
	net.Conn
	writes int
	failed error
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes++
	if c.failed != nil {
		return 0, c.failed
	}
	return c.Conn.Write(b)
}

func TestRecordsOfTLSAreWrittenTogether(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.StartTLS()
	defer server.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server.TLS)
	require.NoError(t, err)
	defer listener.Close()
	arrived := make(chan []byte, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		all, _ := io.ReadAll(c)
		arrived <- all
	}()
	plain, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	below := &counted{Conn: plain}
	g := &CorkConn{Conn: below}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client := tls.Client(g, &tls.Config{RootCAs: roots, ServerName: "example.com"})
	defer client.Close()
	require.NoError(t, client.Handshake())
	sent := bytes.Repeat([]byte("detour"), 1<<20/6)
	_, err = client.Write(sent) // until the records have their full size
	require.NoError(t, err)

	below.writes = 0
	g.Cork()
	_, err = client.Write(sent)
	require.NoError(t, err)
	require.NoError(t, g.Uncork())
	require.Equal(t, 8, below.writes, "of 64 records")
	require.NoError(t, client.Close())
	require.True(t, bytes.Equal(append(bytes.Clone(sent), sent...), <-arrived))
}

func TestCorkConnReportsWriteErrors(t *testing.T) {
	broken := errors.New("broken")
	c := &counted{failed: broken}
	g := &CorkConn{Conn: c}
	g.Cork()
	_, err := g.Write([]byte("held"))
	require.NoError(t, err, "nothing is written yet")
	require.ErrorIs(t, g.Uncork(), broken)
	require.NoError(t, g.Uncork(), "nothing is left")
	_, err = g.Write([]byte("at once"))
	require.ErrorIs(t, err, broken)
	require.Equal(t, 2, c.writes)
	g.Cork()
	_, err = g.Write(make([]byte, gatherMost-1))
	require.NoError(t, err)
	_, err = g.Write([]byte("one too many"))
	require.ErrorIs(t, err, broken)
}
