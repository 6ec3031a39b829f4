package tlspeek

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// clientHello returns the ClientHello of a real client.
func clientHello(t testing.TB, config *tls.Config) []byte {
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		_ = tls.Client(here, config).Handshake()
		_ = here.Close()
	}()
	b := make([]byte, 8<<10)
	n, err := there.Read(b)
	require.NoError(t, err)
	return b[:n]
}

// readerConn is a connection that reads from a reader.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// ReadHello understands the ClientHello however its bytes arrive, and returns every byte that it
// has read.
func TestReadHello(t *testing.T) {
	hello := clientHello(t, &tls.Config{ServerName: "catalog.shop", NextProtos: []string{"h2", "http/1.1"}})
	for name, c := range map[string]struct {
		prefix []byte
		rest   io.Reader
	}{
		"at once":                {prefix: hello, rest: strings.NewReader("")},
		"without a prefix":       {rest: bytes.NewReader(hello)},
		"byte by byte":           {prefix: hello[:1], rest: iotest.OneByteReader(bytes.NewReader(hello[1:]))},
		"with more bytes behind": {prefix: append(bytes.Clone(hello), "and more"...), rest: strings.NewReader("")},
		"cut behind the header":  {prefix: hello[:5], rest: bytes.NewReader(hello[5:])},
	} {
		t.Run(name, func(t *testing.T) {
			h, read, err := ReadHello(readerConn{Reader: c.rest}, c.prefix)
			require.NoError(t, err)
			assert.Equal(t, "catalog.shop", h.Name())
			assert.Equal(t, []string{"h2", "http/1.1"}, h.Protocols())
			rest, _ := io.ReadAll(c.rest)
			want := hello
			if len(c.prefix) > len(hello) {
				want = c.prefix
			}
			assert.Equal(t, string(want), string(read)+string(rest))
		})
	}
	for name, b := range map[string]string{
		"nothing":            "",
		"half a ClientHello": string(hello[:100]),
		"HTTP":               "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"another record":     "\x17\x03\x03\x00\x01a",
	} {
		t.Run(name, func(t *testing.T) {
			h, read, err := ReadHello(readerConn{Reader: strings.NewReader(b)}, nil)
			require.ErrorIs(t, err, ErrNoHello)
			assert.Nil(t, h)
			assert.Equal(t, b, string(read), "every byte that was read is returned")
		})
	}
	t.Run("a client that sends nothing more", func(t *testing.T) {
		failed := errors.New("deadline")
		_, read, err := ReadHello(readerConn{Reader: iotest.ErrReader(failed)}, hello[:7])
		require.ErrorIs(t, err, failed)
		assert.Equal(t, hello[:7], read)
	})
}

func TestSupportsCertificate(t *testing.T) {
	certificate := newCertificate(t, time.Now().Add(time.Hour))
	read := func(config *tls.Config) *Hello {
		h, _, err := ReadHello(readerConn{Reader: strings.NewReader("")}, clientHello(t, config))
		require.NoError(t, err)
		return h
	}
	assert.NoError(t, read(&tls.Config{ServerName: "catalog.shop"}).SupportsCertificate(&certificate))
	otherName := read(&tls.Config{ServerName: "another.name"})
	assert.NoError(t, otherName.SupportsCertificate(&certificate), "the server name is between client and app")
	assert.Error(t, read(&tls.Config{
		ServerName: "catalog.shop", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
	}).SupportsCertificate(&certificate))
	assert.Error(t, read(&tls.Config{
		ServerName: "catalog.shop", MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
	}).SupportsCertificate(&certificate))
}

// FuzzReadHello feeds bytes that any pod of the cluster can choose. Every byte that was read is
// returned.
func FuzzReadHello(f *testing.F) {
	f.Add(clientHello(f, &tls.Config{ServerName: "catalog.shop"}), 7)
	older := &tls.Config{ServerName: "catalog.shop", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12}
	f.Add(clientHello(f, older), 100)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 0)
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		if cut < 0 || cut > len(b) {
			return
		}
		source := bytes.NewReader(b[cut:])
		h, read, err := ReadHello(readerConn{Reader: source}, b[:cut])
		if (h == nil) != (err != nil) {
			t.Fatal("there must be either a hello or an error")
		}
		rest, _ := io.ReadAll(source)
		if !bytes.Equal(b, append(read, rest...)) {
			t.Fatal("bytes were lost or changed")
		}
		if h != nil {
			_ = h.SupportsCertificate(&tls.Certificate{})
		}
	})
}
