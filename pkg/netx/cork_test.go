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

// countingConn counts its writes. They fail if err is set.
type countingConn struct {
	net.Conn
	writes int
	err    error
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.writes++
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Write(b)
}

func TestCorkConnWritesTLSRecordsTogether(t *testing.T) {
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
	below := &countingConn{Conn: plain}
	c := &CorkConn{Conn: below}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "example.com"})
	defer client.Close()
	require.NoError(t, client.Handshake())
	sent := bytes.Repeat([]byte("detour"), 1<<20/6)
	_, err = client.Write(sent) // after this the records have their full size
	require.NoError(t, err)

	below.writes = 0
	c.Cork()
	_, err = client.Write(sent)
	require.NoError(t, err)
	require.NoError(t, c.Uncork())
	require.Equal(t, 8, below.writes, "64 records")
	require.NoError(t, client.Close())
	require.True(t, bytes.Equal(append(bytes.Clone(sent), sent...), <-arrived))
}

func TestCorkConnReportsWriteErrors(t *testing.T) {
	broken := errors.New("broken")
	below := &countingConn{err: broken}
	c := &CorkConn{Conn: below}
	c.Cork()
	_, err := c.Write([]byte("queued"))
	require.NoError(t, err, "the bytes are only queued")
	require.ErrorIs(t, c.Uncork(), broken)
	require.NoError(t, c.Uncork(), "nothing is queued")
	_, err = c.Write([]byte("at once"))
	require.ErrorIs(t, err, broken)
	require.Equal(t, 2, below.writes)
	c.Cork()
	_, err = c.Write(make([]byte, corkSize-1))
	require.NoError(t, err)
	_, err = c.Write([]byte("one too many"))
	require.ErrorIs(t, err, broken)
}
