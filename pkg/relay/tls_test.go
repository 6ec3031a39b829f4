package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/netx"
)

const patience = 30 * time.Second

// counted counts the writes of more than a few bytes.
type counted struct {
	net.Conn
	mu     sync.Mutex
	writes []int
}

func (c *counted) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.writes = append(c.writes, len(b))
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// secured is both ends of a connection over loopback, after the handshake, and what the client's end writes.
func secured(t testing.TB) (client, server *Conn, below *counted) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"manager"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	below = &counted{Conn: a}
	client = Client(below, &tls.Config{RootCAs: pool, ServerName: "manager", DynamicRecordSizingDisabled: true})
	server = Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, DynamicRecordSizingDisabled: true})
	for _, c := range []*Conn{client, server} {
		t.Cleanup(func() { _ = c.NetConn().Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	}
	shaken := make(chan error, 1)
	go func() { shaken <- server.HandshakeContext(t.Context()) }()
	require.NoError(t, client.HandshakeContext(t.Context()))
	require.NoError(t, <-shaken)
	below.mu.Lock()
	defer below.mu.Unlock()
	below.writes = nil
	return client, server, below
}

func TestSeveralRecordsAreOneWrite(t *testing.T) {
	for size, want := range map[int]int{1: 1, recordData: 1, recordData + 1: 1, 64 << 10: 1, 200_000: 2, 1 << 20: 8} {
		client, server, below := secured(t)
		sent := make([]byte, size)
		_, _ = rand.Read(sent)
		written := make(chan error, 1)
		go func() {
			n, err := client.Write(sent)
			if err == nil && n != size {
				err = io.ErrShortWrite
			}
			written <- err
		}()
		got := make([]byte, size)
		_, err := io.ReadFull(server, got)
		require.NoError(t, err)
		require.NoError(t, <-written)
		require.True(t, bytes.Equal(sent, got))
		assert.Len(t, below.writes, want, "for %d bytes", size)
	}
}

// Both ends say much and little at the same time, and end in order.
func TestBothWays(t *testing.T) {
	client, server, _ := secured(t)
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent)
	var all sync.WaitGroup
	for _, c := range []*Conn{client, server} {
		all.Go(func() {
			for rest, i := sent, 0; len(rest) > 0; i++ {
				n := min(len(rest), []int{1, 100, 70_000, 16 << 10, 5000, 1 << 18}[i%6])
				_, err := c.Write(rest[:n])
				assert.NoError(t, err)
				rest = rest[n:]
			}
			assert.NoError(t, c.CloseWrite())
		})
		all.Go(func() {
			got, err := io.ReadAll(c)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(sent, got))
		})
	}
	all.Wait()
}

// It is known what can be read without waiting.
func TestRecordReady(t *testing.T) {
	client, server, _ := secured(t)
	assert.False(t, server.RecordReady())
	_, err := client.Write(make([]byte, 60<<10))
	require.NoError(t, err)
	var got int
	for got < 60<<10 {
		waiting := server.RecordReady()
		if waiting {
			require.NoError(t, server.SetReadDeadline(time.Unix(1, 0)))
		}
		n, err := server.Read(make([]byte, 16<<10))
		require.NoError(t, err)
		got += n
		require.NoError(t, server.SetReadDeadline(time.Now().Add(patience)))
	}
	assert.False(t, server.RecordReady())
	require.NoError(t, server.SetReadDeadline(time.Unix(1, 0)))
	_, err = server.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, server.SetReadDeadline(time.Now().Add(patience)))
	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(server, make([]byte, 1))
	require.NoError(t, err, "nothing was lost by the deadline")
}

// Nobody reads, and a write waits; closing ends it.
func TestCloseWhileWriting(t *testing.T) {
	client, _, _ := secured(t)
	failed := make(chan error, 1)
	go func() {
		for {
			if _, err := client.Write(make([]byte, 1<<20)); err != nil {
				failed <- err
				return
			}
		}
	}()
	require.Eventually(t, func() bool { // it is being written
		free := client.writing.TryLock()
		if free {
			client.writing.Unlock()
		}
		return !free
	}, patience, time.Millisecond)
	_ = client.Close()
	require.Error(t, <-failed)
}

// A connection that is cut in the middle of a record, or of its header, does not look whole.
func TestCutRecords(t *testing.T) {
	for _, length := range []int{1, recordHeader - 1, recordHeader, recordHeader + 7} {
		r := &records{CorkConn: &netx.CorkConn{Conn: &given{Reader: bytes.NewReader(append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...)[:length])}}}
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.Len(t, got, length)
	}
}

// given is a connection that says what a reader does.
type given struct {
	net.Conn
	io.Reader
}

func (g *given) Read(b []byte) (int, error) { return g.Reader.Read(b) }

// Whatever comes, however it is cut, is what TLS gets, one record at a time.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x17\x03\x03\x00\x02ab\x17\x03\x03\x00\x01c"), 100, false)
	f.Add([]byte("\x17\x03\x03\xff\xffab"), 3, true)
	f.Add(append([]byte("\x17\x03\x03\x40\x11"), make([]byte, 1<<15)...), 600, false)
	f.Fuzz(func(t *testing.T, sent []byte, size int, slow bool) {
		if size <= 0 || size > 1<<17 {
			return
		}
		var from io.Reader = bytes.NewReader(sent)
		if slow {
			from = iotest.HalfReader(from)
		}
		r := &records{CorkConn: &netx.CorkConn{Conn: &given{Reader: from}}}
		var got []byte
		left := 0 // of the record
		for {
			whole := r.waiting()
			if whole && left != 0 {
				t.Fatal("a record waits while another one is being read")
			}
			b := make([]byte, size)
			n, err := r.Read(b)
			if errors.Is(err, io.EOF) && n == 0 {
				break
			}
			require.NoError(t, err)
			if left == 0 {
				left = n
				if rest := sent[len(got):]; len(rest) >= recordHeader {
					left = recordHeader + int(rest[3])<<8 + int(rest[4])
				}
			}
			if left -= n; left < 0 {
				t.Fatal("more than a record at a time")
			}
			got = append(got, b[:n]...)
		}
		if !bytes.Equal(sent, got) {
			t.Fatalf("sent %d bytes, got %d", len(sent), len(got))
		}
	})
}
