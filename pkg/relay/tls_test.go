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
)

const patience = 30 * time.Second

// countingConn records the sizes of its writes.
type countingConn struct {
	net.Conn

	// mu guards the field below.
	mu     sync.Mutex
	writes []int
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.writes = append(c.writes, len(b))
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// rawPair returns both ends of a TCP connection over loopback, and configurations of TLS for them.
func rawPair(t testing.TB) (near, far net.Conn, client, server *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"manager"}, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	return near, far, &tls.Config{RootCAs: pool, ServerName: "manager", DynamicRecordSizingDisabled: true}, &tls.Config{
		Certificates:                []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		DynamicRecordSizingDisabled: true,
	}
}

// tlsPair returns both ends of a connection over loopback after the handshake, and the connection
// below the client.
func tlsPair(t testing.TB) (client, server *Conn, below *countingConn) {
	t.Helper()
	near, far, clientConfig, serverConfig := rawPair(t)
	below = &countingConn{Conn: near}
	client, server = Client(below, clientConfig), Server(far, serverConfig)
	for _, c := range []*Conn{client, server} {
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	}
	handshake := make(chan error, 1)
	go func() { handshake <- server.HandshakeContext(t.Context()) }()
	require.NoError(t, client.HandshakeContext(t.Context()))
	require.NoError(t, <-handshake)
	below.mu.Lock()
	defer below.mu.Unlock()
	below.writes = nil
	return client, server, below
}

func TestConnWritesSeveralRecordsAtOnce(t *testing.T) {
	for size, want := range map[int]int{1: 1, recordData: 1, recordData + 1: 1, 64 << 10: 1, 200_000: 2, 1 << 20: 8} {
		client, server, below := tlsPair(t)
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

// Both ends send small and large messages at the same time, and end in order.
func TestConnCarriesAllBytesBothWays(t *testing.T) {
	client, server, _ := tlsPair(t)
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

// While RecordReady reports true, a Read returns at once.
func TestRecordReady(t *testing.T) {
	client, server, _ := tlsPair(t)
	assert.False(t, server.RecordReady())
	_, err := client.Write(make([]byte, 60<<10))
	require.NoError(t, err)
	var got int
	for got < 60<<10 {
		if server.RecordReady() {
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
	require.NoError(t, err, "the deadline lost no bytes")
}

// Close ends a Write that waits because the peer does not read.
func TestCloseEndsAWriteThatWaits(t *testing.T) {
	client, _, _ := tlsPair(t)
	failed := make(chan error, 1)
	go func() {
		for {
			if _, err := client.Write(make([]byte, 1<<20)); err != nil {
				failed <- err
				return
			}
		}
	}()
	require.Eventually(t, func() bool { // until Write holds the lock
		free := client.writing.TryLock()
		if free {
			client.writing.Unlock()
		}
		return !free
	}, patience, time.Millisecond)
	_ = client.Close()
	require.Error(t, <-failed)
}

// TLS gets the part of a record or a header at which a connection was cut, so that it sees the cut.
func TestRecordsPassOnACutRecord(t *testing.T) {
	for _, length := range []int{1, recordHeader - 1, recordHeader, recordHeader + 7} {
		record := append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...)
		r := newRecords(&readerConn{Reader: bytes.NewReader(record[:length])})
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.Len(t, got, length)
	}
}

// readerConn is a connection that reads from a reader.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c *readerConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// FuzzRecords checks that TLS gets all bytes, at most one record at a time, however the connection
// cuts them.
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
		r := newRecords(&readerConn{Reader: from})
		var got []byte
		rest := 0 // bytes of the record
		for {
			ready := r.ready()
			if ready && rest != 0 {
				t.Fatal("a record is ready while another one is being read")
			}
			b := make([]byte, size)
			n, err := r.Read(b)
			if errors.Is(err, io.EOF) && n == 0 {
				break
			}
			require.NoError(t, err)
			if rest == 0 {
				rest = n
				if record := sent[len(got):]; len(record) >= recordHeader {
					rest = recordHeader + int(record[3])<<8 + int(record[4])
				}
			}
			if rest -= n; rest < 0 {
				t.Fatal("a Read returned more than a record")
			}
			got = append(got, b[:n]...)
		}
		if !bytes.Equal(sent, got) {
			t.Fatalf("sent %d bytes, got %d", len(sent), len(got))
		}
	})
}
