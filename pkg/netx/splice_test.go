package netx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// socketPair returns the two ends of a connection over loopback.
func socketPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	accepted, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = dialled.Close(); _ = accepted.Close() })
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// Messages of any size pass both ways in order, small ones after bulk as well.
func TestSpliceCarriesAllBytesBothWays(t *testing.T) {
	client, a := socketPair(t)
	b, server := socketPair(t)
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { Splice(a, b) })
	for from, to := range map[*net.TCPConn]*net.TCPConn{client: server, server: client} {
		sent, got := sha256.New(), sha256.New()
		all.Go(func() {
			defer from.CloseWrite() //nolint:errcheck // the reader sees it
			random := mathrand.NewChaCha8([32]byte{})
			for _, size := range []int64{1, 100, 16<<20 + 3*64<<10, 5, 40, 32<<20 + 7, 1} {
				if _, err := io.CopyN(io.MultiWriter(from, sent), random, size); err != nil {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			if _, err := io.Copy(got, to); err != nil {
				t.Error(err)
			}
		})
		defer func() { all.Wait(); require.Equal(t, sent.Sum(nil), got.Sum(nil)) }()
	}
}

// A reset on one side becomes a reset below TLS on the other side. An orderly end of TLS would make
// the stream look complete.
func TestSpliceResetsTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{}, key.Public(), key)
	require.NoError(t, err)
	outer, inner := socketPair(t)
	laptop, local := socketPair(t)
	certificate := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	server := tls.Server(inner, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}})
	var splicing sync.WaitGroup
	defer splicing.Wait()
	splicing.Go(func() { Splice(server, laptop) })
	client := tls.Client(outer, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	_, err = client.Write([]byte("hello"))
	require.NoError(t, err)
	_, err = io.ReadFull(local, make([]byte, 5))
	require.NoError(t, err)
	_, err = local.Write([]byte("half an ans"))
	require.NoError(t, err)
	_, err = io.ReadFull(client, make([]byte, 11))
	require.NoError(t, err)
	require.NoError(t, local.SetLinger(0))
	require.NoError(t, local.Close())
	_, err = client.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
}
