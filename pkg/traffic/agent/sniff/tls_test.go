package sniff

import (
	"testing"

	"github.com/detour-dev/detour/pkg/tlspeek"
)

// FuzzClassifyTLS shows that no bytes pass for the beginning of TLS and of HTTP at once.
func FuzzClassifyTLS(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tlspeek.StartsTLS(b) && (BeginsRequest(b) || Classify(b) != Other) {
			t.Fatal("TLS and HTTP cannot be mistaken for one another")
		}
	})
}
