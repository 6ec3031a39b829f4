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

// hello is what a real client says first.
func hello(t testing.TB, config *tls.Config) []byte {
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

// source is a connection that says what is read from a reader.
type source struct {
	net.Conn
	io.Reader
}

func (s source) Read(b []byte) (int, error) { return s.Reader.Read(b) }

// However the bytes come, the ClientHello is understood, and not one byte is lost for whoever goes on.
func TestReadHello(t *testing.T) {
	said := hello(t, &tls.Config{ServerName: "catalog.shop", NextProtos: []string{"h2", "http/1.1"}})
	for name, c := range map[string]struct {
		first []byte
		rest  io.Reader
	}{
		"at once":                 {said, strings.NewReader("")},
		"read here":               {nil, bytes.NewReader(said)},
		"byte by byte":            {said[:1], iotest.OneByteReader(bytes.NewReader(said[1:]))},
		"with what follows":       {append(append([]byte{}, said...), "and more"...), strings.NewReader("")},
		"cut where the body ends": {said[:5], bytes.NewReader(said[5:])},
	} {
		t.Run(name, func(t *testing.T) {
			h, seen, err := ReadHello(source{Reader: c.rest}, c.first)
			require.NoError(t, err)
			assert.Equal(t, "catalog.shop", h.Name())
			assert.Equal(t, []string{"h2", "http/1.1"}, h.Protocols())
			left, _ := io.ReadAll(c.rest)
			want := said
			if len(c.first) > len(said) {
				want = c.first
			}
			assert.Equal(t, string(want), string(seen)+string(left))
		})
	}
	for name, b := range map[string]string{"nothing": "", "half": string(said[:100]), "HTTP": "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "another record": "\x17\x03\x03\x00\x01a"} {
		t.Run(name, func(t *testing.T) {
			h, seen, err := ReadHello(source{Reader: strings.NewReader(b)}, nil)
			require.ErrorIs(t, err, ErrNoHello)
			assert.Nil(t, h)
			assert.Equal(t, b, string(seen), "what was read passes on")
		})
	}
	t.Run("a client that says no more", func(t *testing.T) {
		failed := errors.New("deadline")
		_, seen, err := ReadHello(source{Reader: iotest.ErrReader(failed)}, said[:7])
		require.ErrorIs(t, err, failed)
		assert.Equal(t, said[:7], seen)
	})
}

func TestHelloTakes(t *testing.T) {
	certificate := newCertificate(t, time.Now().Add(time.Hour))
	read := func(config *tls.Config) *Hello {
		h, _, err := ReadHello(source{Reader: strings.NewReader("")}, hello(t, config))
		require.NoError(t, err)
		return h
	}
	assert.NoError(t, read(&tls.Config{ServerName: "catalog.shop"}).SupportsCertificate(&certificate))
	assert.NoError(t, read(&tls.Config{ServerName: "another.name"}).SupportsCertificate(&certificate), "the name is between client and app")
	assert.Error(t, read(&tls.Config{ServerName: "catalog.shop", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).SupportsCertificate(&certificate))
	assert.Error(t, read(&tls.Config{ServerName: "catalog.shop", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}).SupportsCertificate(&certificate))
}

// FuzzReadHello: any pod of the cluster chooses these bytes. All of them are there for whoever goes on.
func FuzzReadHello(f *testing.F) {
	f.Add(hello(f, &tls.Config{ServerName: "catalog.shop"}), 7)
	f.Add(hello(f, &tls.Config{ServerName: "catalog.shop", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12}), 100)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 0)
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		if cut < 0 || cut > len(b) {
			return
		}
		rest := bytes.NewReader(b[cut:])
		h, seen, err := ReadHello(source{Reader: rest}, b[:cut])
		if (h == nil) != (err != nil) {
			t.Fatal("neither a hello nor an error, or both")
		}
		left, _ := io.ReadAll(rest)
		if !bytes.Equal(b, append(seen, left...)) {
			t.Fatal("bytes were lost or changed")
		}
		if h != nil {
			_ = h.SupportsCertificate(&tls.Certificate{})
		}
	})
}
