package vif_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/viftest"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// heldStream is a laptop's stream that records all sent bytes.
type heldStream struct {
	io.ReadWriteCloser
	mu   sync.Mutex
	sent []byte
}

func (h *heldStream) Write(b []byte) (int, error) {
	h.mu.Lock()
	h.sent = append(h.sent, b...)
	h.mu.Unlock()
	return h.ReadWriteCloser.Write(b)
}

func (h *heldStream) all() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.sent)
}

// stranger opens one more stream to a hub, which serves it until the test ends.
func stranger(t *testing.T, hub *vif.Hub) net.Conn {
	t.Helper()
	near, far := viftest.TCPPair(t)
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = hub.ServeStream(ctx, far) })
	t.Cleanup(func() { stop(); serving.Wait() })
	return near
}

// No message of an unknown peer disturbs the laptop, and none gets an answer from the hub.
func TestStrangersDisturbNobody(t *testing.T) {
	var mu sync.Mutex
	var held *heldStream
	hub, laptop, key, _ := viftest.PairWith(t, vif.Config{}, func(rw io.ReadWriteCloser) io.ReadWriteCloser {
		mu.Lock()
		defer mu.Unlock()
		held = &heldStream{ReadWriteCloser: rw}
		return held
	})
	c, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	still := func() {
		t.Helper()
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		_, err := c.Write([]byte("still there?"))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 12))
		require.NoError(t, err)
		require.Eventually(
			t,
			func() bool { return hub.Connected(key, 5*time.Second) && laptop.Alive() },
			viftest.Timeout,
			10*time.Millisecond,
		)
	}
	still()
	mu.Lock()
	recorded := held.all()
	mu.Unlock()

	noise := make([]byte, 3000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise)
	handshake := append([]byte{1, 0, 0, 0}, noise[:144]...) // WireGuard's length and kind, but nobody's key
	for name, sends := range map[string][]byte{
		"nothing":                         nil,
		"half a frame":                    viftest.Framed("unfinished")[:7],
		"frames without a meaning":        viftest.Framed(string(noise), "", "x", string(noise[:32])),
		"a frame that is too long":        {0xff, 0xff, 0xff, 0xff},
		"another protocol":                []byte("GET / HTTP/1.1\r\nHost: traffic-manager\r\n\r\n"),
		"a handshake with an unknown key": viftest.Framed(string(handshake)),
		"data with an unknown key":        viftest.Framed(string(append([]byte{4, 0, 0, 0}, noise[:60]...))),
		"the laptop's own recorded bytes": recorded,
		"the recorded bytes three times":  bytes.Repeat(recorded, 3),
		"the largest frame, of data": viftest.Framed(string(append([]byte{
			4,
			0,
			0,
			0,
		}, bytes.Repeat([]byte{7}, transport.MaxMessage-4)...))),
	} {
		t.Run(name, func(t *testing.T) {
			s := stranger(t, hub)
			_, err := s.Write(sends)
			require.NoError(t, err)
			still()
			require.NoError(t, s.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
			got, _ := io.ReadAll(s)
			assert.Empty(t, got)
			still()
		})
	}
}

// A laptop without a session gets no answer, and says so.
func TestLaptopWithoutSessionGetsNoAnswer(t *testing.T) {
	hubKey, err := wgkey.NewPrivate()
	require.NoError(t, err)
	strange, err := wgkey.NewPrivate()
	require.NoError(t, err)
	hub, err := vif.NewHub(
		vif.HubConfig{
			PrivateKey: hubKey,
			Addresses:  []netip.Addr{viftest.HubAddress},
			Allow:      func(netip.Addr) bool { return true },
		},
	)
	require.NoError(t, err)
	defer func() { require.NoError(t, hub.Close()) }()
	var laptop *vif.Interface
	viftest.OnLaptop(t, func() (err error) {
		laptop, err = vif.Up(t.Context(), vif.Config{
			PrivateKey: strange, PeerKey: hubKey.Public(), Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.3")},
			Dial: func(context.Context) (vif.Stream, error) {
				return vif.Stream{ReadWriteCloser: stranger(t, hub)}, nil
			},
		})
		return err
	})
	defer func() { require.NoError(t, laptop.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	require.ErrorContains(t, laptop.Ready(ctx), "no answer from the traffic-manager")
	require.False(t, laptop.Alive())
	require.False(t, hub.Connected(strange.Public(), time.Minute))
}
