package tlspeek

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sampleHello returns the ClientHello of a real client.
func sampleHello(t testing.TB) []byte {
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		_ = tls.Client(here, &tls.Config{ServerName: "catalog.shop", MinVersion: tls.VersionTLS12}).Handshake()
		_ = here.Close()
	}()
	b := make([]byte, 4<<10)
	n, err := there.Read(b)
	require.NoError(t, err)
	return b[:n]
}

func TestStartsTLSTakesAnyPrefixOfAClientHello(t *testing.T) {
	real := sampleHello(t)
	for n := 1; n <= len(real); n++ {
		require.True(t, StartsTLS(real[:n]), "the first %d bytes", n)
	}
	for name, b := range map[string]string{
		"nothing":         "",
		"HTTP":            "GET / HTTP/1.1\r\n",
		"SSLv2":           "\x80\x2e\x01\x03\x01",
		"an alert":        "\x15\x03\x01\x00\x02\x02\x28",
		"a ServerHello":   "\x16\x03\x03\x00\x40\x02",
		"another version": "\x16\x02\x00",
	} {
		assert.False(t, StartsTLS([]byte(b)), name)
	}
}

func TestAnswersTLS(t *testing.T) {
	for b, want := range map[string]bool{
		"\x16\x03\x03\x00\x40\x02":     true, // a ServerHello
		"\x15\x03\x01\x00\x02\x02\x28": true, // an alert
		"HTTP/1.0 400 Bad Request\r\n": false,
		"\x16":                         false,
		"":                             false,
		"\x00\x00\x12\x04":             false,
	} {
		assert.Equal(t, want, answersTLS([]byte(b)), "%q", b)
	}
}
