package vif

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	hubAddress    = netip.MustParseAddr("198.18.0.1")
	laptopAddress = netip.MustParseAddr("198.18.0.2")
)

const inboundPort = 7474

// pair connects a laptop with a real TUN, in a network namespace of its own, to a hub over TCP on loopback.
func pair(t *testing.T) (*Hub, *Interface, Key) {
	hub, laptop, key, _ := pairOver(t)
	return hub, laptop, key
}

// pairOver also returns a function that cuts the streams which are open.
func pairOver(t *testing.T) (*Hub, *Interface, Key, func()) {
	t.Helper()
	return pairWith(t, Config{})
}

// pairWith makes the laptop's end where the Config says: in the laptop's network namespace, or in a Namespace. What is given to wrap
// them is put around the laptop's streams.
func pairWith(t *testing.T, c Config, wrap ...func(io.ReadWriteCloser) io.ReadWriteCloser) (*Hub, *Interface, Key, func()) {
	t.Helper()
	hubKey, err := NewPrivateKey()
	require.NoError(t, err)
	laptopKey, err := NewPrivateKey()
	require.NoError(t, err)

	hub := newHub(t, hubKey, 0, laptopKey.PublicKey())
	t.Cleanup(func() { require.NoError(t, hub.Close()) })

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	// Not the test's own context: what is open must be able to end in order before the tunnel goes.
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
	}
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			serving.Go(func() { _ = hub.ServeStream(ctx, c) })
		}
	})
	t.Cleanup(func() { stop(); _ = listener.Close(); serving.Wait() })

	var laptop *Interface
	c.PrivateKey, c.PeerKey, c.Addresses, c.InboundPort = laptopKey, hubKey.PublicKey(), []netip.Addr{laptopAddress}, inboundPort
	c.Routes = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("198.18.0.0/24")}
	c.Dial = func(ctx context.Context) (Stream, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", listener.Addr().String())
		if err != nil {
			return Stream{}, err
		}
		var rw io.ReadWriteCloser = conn
		for _, w := range wrap {
			rw = w(rw)
		}
		return Stream{ReadWriteCloser: rw, Transport: "stream"}, nil
	}
	onLaptop(t, func() error {
		laptop, err = Up(t.Context(), c)
		return err
	})
	t.Cleanup(func() { require.NoError(t, laptop.Close()) })
	waiting, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, laptop.Ready(waiting))
	return hub, laptop, laptopKey.PublicKey(), cut
}

// newHub makes a hub that knows one laptop, and takes datagrams too when it is given a port.
func newHub(t *testing.T, key Key, udp uint16, laptop Key) *Hub {
	t.Helper()
	hub, err := NewHub(HubConfig{PrivateKey: key, Addresses: []netip.Addr{hubAddress}, UDPPort: udp, Allow: func(a netip.Addr) bool { return !a.IsLoopback() }})
	require.NoError(t, err)
	require.NoError(t, hub.SetPeers([]Peer{{PublicKey: laptop, Addresses: []netip.Addr{laptopAddress}}}))
	return hub
}

// echo serves an echo on the cluster's address and half-closes after its client does.
func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(service, 0).String())
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func dialFromLaptop(network, address string) (c net.Conn, err error) {
	err = inLaptop(func() error {
		c, err = (&net.Dialer{Timeout: patience}).Dial(network, address)
		return err
	})
	return c, err
}

func TestLaptopReachesTheCluster(t *testing.T) {
	hub, laptop, key := pair(t)
	address := echo(t)

	t.Run("bytes arrive whole, with half-close", func(t *testing.T) {
		c, err := dialFromLaptop("tcp", address.String())
		require.NoError(t, err)
		defer c.Close()
		sent := make([]byte, 20<<20)
		_, _ = rand.Read(sent)
		var writing sync.WaitGroup
		writing.Go(func() {
			_, err := c.Write(sent)
			assert.NoError(t, err)
			assert.NoError(t, c.(*net.TCPConn).CloseWrite())
		})
		hash := sha256.New()
		n, err := io.Copy(hash, c)
		writing.Wait()
		require.NoError(t, err)
		require.EqualValues(t, len(sent), n)
		want := sha256.Sum256(sent)
		require.Equal(t, want[:], hash.Sum(nil))
	})

	t.Run("many connections at once", func(t *testing.T) {
		var all sync.WaitGroup
		failures := make(chan error, 200)
		for n := range 200 {
			all.Go(func() {
				c, err := dialFromLaptop("tcp", address.String())
				if err != nil {
					failures <- err
					return
				}
				defer c.Close()
				message := fmt.Appendf(nil, "connection %d", n)
				got := make([]byte, len(message))
				if _, err := c.Write(message); err != nil {
					failures <- err
				} else if _, err := io.ReadFull(c, got); err != nil {
					failures <- err
				} else if !bytes.Equal(got, message) {
					failures <- fmt.Errorf("sent %q, got %q", message, got)
				}
			})
		}
		all.Wait()
		close(failures)
		for err := range failures {
			t.Error(err)
		}
	})

	t.Run("a refused port is refused at once", func(t *testing.T) {
		_, err := dialFromLaptop("tcp", netip.AddrPortFrom(service, 1).String())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})

	t.Run("what the hub does not allow is refused", func(t *testing.T) {
		onLaptop(t, func() error {
			rtt, err := RTT(t.Context(), new(net.Dialer).DialContext, hubAddress)
			require.Positive(t, rtt)
			return err
		})
	})

	t.Run("datagrams", func(t *testing.T) {
		server, err := net.ListenPacket("udp", netip.AddrPortFrom(service, 0).String())
		require.NoError(t, err)
		defer server.Close()
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(buf[:n], from)
			}
		}()
		c, err := dialFromLaptop("udp", server.LocalAddr().String())
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		for n := range 100 {
			message := fmt.Sprintf("datagram %d", n)
			_, err = c.Write([]byte(message))
			require.NoError(t, err)
			buf := make([]byte, 100)
			got, err := c.Read(buf)
			require.NoError(t, err)
			require.Equal(t, message, string(buf[:got]))
		}
	})

	t.Run("it is seen as connected", func(t *testing.T) {
		require.True(t, hub.Connected(key, 3*time.Second))
		require.True(t, laptop.Alive())
	})
}

func TestClusterReachesOnlyTheInboundPort(t *testing.T) {
	hub, _, _ := pair(t)
	listen := func(port int) net.Listener {
		var l net.Listener
		onLaptop(t, func() (err error) {
			l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port))
			return err
		})
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	open, other := listen(inboundPort), listen(8080)

	go func() {
		c, err := open.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := hub.Dial(ctx, netip.AddrPortFrom(laptopAddress, inboundPort))
	require.NoError(t, err)
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
	require.NoError(t, c.Close())

	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = hub.Dial(short, netip.AddrPortFrom(laptopAddress, uint16(other.Addr().(*net.TCPAddr).Port)))
	require.Error(t, err, "a port that is not the inbound port must stay closed to the cluster")
}

// A client that resets its connection in the cluster is not taken for one that ended in order.
func TestResetReachesTheLaptop(t *testing.T) {
	hub, _, _ := pair(t)
	var l net.Listener
	onLaptop(t, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", inboundPort))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.ReadAll(c)
			_ = c.Close()
		}
		ended <- err
	}()
	c, err := hub.Dial(t.Context(), netip.AddrPortFrom(laptopAddress, inboundPort))
	require.NoError(t, err)
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	c.(interface{ Abort() }).Abort()
	require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	require.NoError(t, c.Close())
}

// Who waits in the cluster for a laptop that is gone is told so; what the laptop itself opened is there when it comes back.
func TestRelayedFlowsOfALaptopThatIsGoneAreReset(t *testing.T) {
	hub, _, key := pair(t)
	own, err := dialFromLaptop("tcp", echo(t).String())
	require.NoError(t, err)
	defer own.Close()
	flowing(t, own)
	var l net.Listener
	onLaptop(t, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", inboundPort))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	relayed, err := hub.Dial(t.Context(), netip.AddrPortFrom(laptopAddress, inboundPort))
	require.NoError(t, err)
	defer relayed.Close()

	hub.ResetRelayed(key)
	require.NoError(t, relayed.SetReadDeadline(time.Now().Add(patience)))
	_, err = relayed.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	flowing(t, own)
}

func TestConnectionsSurviveAStreamThatIsCut(t *testing.T) {
	_, _, _, cut := pairOver(t)
	c, err := dialFromLaptop("tcp", echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	for n := range 3 {
		if n > 0 {
			cut()
		}
		flowing(t, c)
	}
}
