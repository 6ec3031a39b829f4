package viftest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// Timeout bounds what must happen, on a busy machine too.
const Timeout = 20 * time.Second

var (
	HubAddress    = netip.MustParseAddr("198.18.0.1")
	LaptopAddress = netip.MustParseAddr("198.18.0.2")
)

const InboundPort = 7474

// Pair connects a laptop with a real TUN, in a network namespace of its own, to a hub over TCP on
// loopback. It returns both, and the laptop's public key.
func Pair(t *testing.T) (*vif.Hub, *vif.Interface, wgkey.Key) {
	hub, laptop, key, _ := PairCuttable(t)
	return hub, laptop, key
}

// PairCuttable also returns a function that cuts the open streams.
func PairCuttable(t *testing.T) (*vif.Hub, *vif.Interface, wgkey.Key, func()) {
	t.Helper()
	return PairWith(t, vif.Config{})
}

// Wrapper is put around a laptop's stream.
type Wrapper = func(io.ReadWriteCloser) io.ReadWriteCloser

// PairWith makes the laptop's end as the Config says: by default in the laptop's network namespace.
// It puts the wrappers around the laptop's streams.
func PairWith(t *testing.T, c vif.Config, wrap ...Wrapper) (*vif.Hub, *vif.Interface, wgkey.Key, func()) {
	t.Helper()
	return PairOf(t, c, vif.HubConfig{}, wrap...)
}

// PairOf is PairWith with a configuration for the hub.
func PairOf(
	t *testing.T, c vif.Config, h vif.HubConfig, wrap ...Wrapper,
) (*vif.Hub, *vif.Interface, wgkey.Key, func()) {
	t.Helper()
	hubKey, err := wgkey.NewPrivate()
	require.NoError(t, err)
	laptopKey, err := wgkey.NewPrivate()
	require.NoError(t, err)
	h.PrivateKey = hubKey
	hub := NewHubOf(t, h, laptopKey.Public())
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	address, cut := serveStreams(t, hub)

	var laptop *vif.Interface
	c.PrivateKey, c.PeerKey = laptopKey, hubKey.Public()
	c.Addresses, c.InboundPort = []netip.Addr{LaptopAddress}, InboundPort
	c.Routes = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("198.18.0.0/24")}
	c.Dial = func(ctx context.Context) (vif.Stream, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return vif.Stream{}, err
		}
		var rw io.ReadWriteCloser = conn
		for _, w := range wrap {
			rw = w(rw)
		}
		return vif.Stream{ReadWriteCloser: rw, Transport: "stream"}, nil
	}
	OnLaptop(t, func() error {
		laptop, err = vif.Up(t.Context(), c)
		return err
	})
	t.Cleanup(func() { require.NoError(t, laptop.Close()) })
	waiting, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	require.NoError(t, laptop.Ready(waiting))
	return hub, laptop, laptopKey.Public(), cut
}

// serveStreams gives each connection to an address to the hub. cut ends the open ones.
func serveStreams(t *testing.T, hub *vif.Hub) (address string, cut func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	// This is not the test's own context, because open streams must end in order before the tunnel
	// does.
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
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
	return listener.Addr().String(), func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
	}
}

// NewHubAt makes a hub that knows one laptop, and takes datagrams on a UDP port; 0 is for none.
func NewHubAt(t *testing.T, key wgkey.Key, udp uint16, laptop wgkey.Key) *vif.Hub {
	t.Helper()
	return NewHubOf(t, vif.HubConfig{PrivateKey: key, UDPPort: udp}, laptop)
}

func NewHubOf(t *testing.T, c vif.HubConfig, laptop wgkey.Key) *vif.Hub {
	t.Helper()
	c.Addresses, c.Allow = []netip.Addr{HubAddress}, func(a netip.Addr) bool { return !a.IsLoopback() }
	hub, err := vif.NewHub(c)
	require.NoError(t, err)
	require.NoError(t, hub.SetPeers([]vif.Peer{{PublicKey: laptop, Addresses: []netip.Addr{LaptopAddress}}}))
	return hub
}

// Echo serves an echo on the cluster's address, which half-closes after its client does.
func Echo(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(Service, 0).String())
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

func Dial(network, address string) (c net.Conn, err error) {
	err = InLaptop(func() error {
		c, err = (&net.Dialer{Timeout: Timeout}).Dial(network, address)
		return err
	})
	return c, err
}

// RequireEcho checks that a connection to Echo carries bytes both ways.
func RequireEcho(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(Timeout)))
	_, err := c.Write([]byte("still there?"))
	require.NoError(t, err)
	got := make([]byte, 12)
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, "still there?", string(got))
}

// TCPPair returns the two ends of a connection over loopback.
func TCPPair(t *testing.T) (near, far net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = errors.Join(near.Close(), far.Close()) })
	return near, far
}

// RandomBytes returns the same n bytes each time.
func RandomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = mathrand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// Framed returns messages in their form on a stream.
func Framed(messages ...string) (raw []byte) {
	for _, m := range messages {
		raw = append(binary.BigEndian.AppendUint32(raw, uint32(len(m))), m...)
	}
	return raw
}
