package vif_test

import (
	"bytes"
	"io"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/viftest"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// tapped is a laptop's stream that counts its bytes. It can drop the bytes that the laptop sends.
type tapped struct {
	io.ReadWriteCloser
	sent, received atomic.Int64
	dropSent       atomic.Bool
}

func (s *tapped) Read(b []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(b)
	s.received.Add(int64(n))
	return n, err
}

func (s *tapped) Write(b []byte) (int, error) {
	s.sent.Add(int64(len(b)))
	if s.dropSent.Load() {
		return len(b), nil
	}
	return s.ReadWriteCloser.Write(b)
}

// expressPair is a laptop and a hub that use a stream and an express stream beside it.
type expressPair struct {
	hub    *vif.Hub
	laptop *vif.Interface
	key    wgkey.Key
	streamPair
}

// streamPair is a laptop's stream and its express stream at both ends; nil for one that does not
// exist.
type streamPair struct{ stream, express, hubStream, hubExpress *transport.StreamWire }

func pairWithExpress(t *testing.T) *expressPair {
	t.Helper()
	l := &expressPair{}
	l.hub, l.laptop, l.key, _ = viftest.PairWith(
		t,
		vif.Config{},
		func(rw io.ReadWriteCloser) io.ReadWriteCloser { return &tapped{ReadWriteCloser: rw} },
	)
	l.inUse(t)
	return l
}

func (l *expressPair) now() (now streamPair) {
	if now.stream, _ = l.laptop.Paths().Current().(*transport.StreamWire); now.stream != nil {
		now.express = now.stream.Express()
	}
	if now.hubStream = l.hub.Paths().Stream(l.key); now.hubStream != nil {
		now.hubExpress = now.hubStream.Express()
	}
	return now
}

// inUse waits until both ends use an express stream, and none of the given streams.
func (l *expressPair) inUse(t *testing.T, gone ...*transport.StreamWire) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.streamPair = l.now()
		all := []*transport.StreamWire{l.stream, l.express, l.hubStream, l.hubExpress}
		return !slices.Contains(all, nil) &&
			!slices.ContainsFunc(gone, func(s *transport.StreamWire) bool { return slices.Contains(all, s) })
	}, 2*viftest.Timeout, 10*time.Millisecond, "an express stream is in use")
}

func tap(s *transport.StreamWire) *tapped { return s.Carrier().(vif.Stream).ReadWriteCloser.(*tapped) }

func TestBulkAndOtherFlowsUseDifferentStreams(t *testing.T) {
	l := pairWithExpress(t)
	c, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	bulk, express := tap(l.stream), tap(l.express)
	require.Eventually(
		t,
		func() bool { // after a pause of a second, as on a busy machine, the express stream is not used
			sent, received := bulk.sent.Load(), bulk.received.Load()
			const questions, probes = 50, 1000
			for range questions {
				viftest.RequireEcho(t, c)
			}
			const most = questions*len("still there?") + probes
			return bulk.sent.Load()-sent < int64(most) && bulk.received.Load()-received < int64(most)
		},
		viftest.Timeout,
		time.Millisecond,
		"questions and answers use the express stream",
	)

	const size = 4 << 20
	sent := viftest.RandomBytes(size)
	before := [...]int64{express.sent.Load(), express.received.Load()}
	var writing sync.WaitGroup
	writing.Go(func() { _, _ = c.Write(sent); _ = c.(*net.TCPConn).CloseWrite() })
	require.NoError(t, c.SetDeadline(time.Now().Add(viftest.Timeout)))
	got, err := io.ReadAll(c)
	writing.Wait()
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent, got), "the echo equals the sent bytes")
	require.Less(t, express.sent.Load()-before[0], int64(size/4), "bulk uses the stream")
	require.Less(t, express.received.Load()-before[1], int64(size/4), "bulk uses the stream")
}

// When either stream ends, or dies without closing, connections go on, and both streams come back.
func TestConnectionsSurviveTheEndOfEitherStream(t *testing.T) {
	for name, end := range map[string]func(*expressPair) (gone []*transport.StreamWire){
		"the express stream": func(l *expressPair) []*transport.StreamWire {
			l.express.Close()
			return []*transport.StreamWire{l.express, l.hubExpress}
		},
		"the express stream, at the hub's side": func(l *expressPair) []*transport.StreamWire {
			l.hubExpress.Close()
			return []*transport.StreamWire{l.express, l.hubExpress}
		},
		"the express stream, without an end": func(l *expressPair) []*transport.StreamWire {
			tap(l.express).dropSent.Store(true)
			return []*transport.StreamWire{l.express, l.hubExpress}
		},
		"the stream": func(l *expressPair) []*transport.StreamWire {
			l.stream.Close()
			return []*transport.StreamWire{l.stream, l.express, l.hubStream, l.hubExpress}
		},
		"the stream, at the hub's side": func(l *expressPair) []*transport.StreamWire {
			l.hubStream.Close()
			return []*transport.StreamWire{l.stream, l.express, l.hubStream, l.hubExpress}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := pairWithExpress(t)
			c, err := viftest.Dial("tcp", viftest.Echo(t).String())
			require.NoError(t, err)
			defer c.Close()
			viftest.RequireEcho(t, c)
			gone := end(l)
			viftest.RequireEcho(t, c)
			l.inUse(t, gone...)
			viftest.RequireEcho(t, c)
		})
	}
}

// A laptop on a direct path has no express stream.
func TestNoExpressStreamBesideADirectPath(t *testing.T) {
	r := pairWithDirect(t)
	streams := func() int {
		open, _ := r.hub.Load().Paths().Streams()
		return open
	}
	require.Eventually(t, func() bool { return streams() == 2 }, viftest.Timeout, 10*time.Millisecond)
	r.SetDirect([]netip.AddrPort{r.direct()})
	r.eventually(transport.DirectUDP)
	require.Eventually(t, func() bool { return streams() == 1 }, viftest.Timeout, 10*time.Millisecond)
	r.blocked.Store(true)
	r.eventually("stream")
	require.Eventually(t, func() bool { return streams() == 2 }, viftest.Timeout, 10*time.Millisecond)
}

// Only a holder of a laptop's key can give it an express stream, and only beside its own stream.
func TestStrangersCannotAddAnExpressStream(t *testing.T) {
	l := pairWithExpress(t)
	private, err := wgkey.NewPrivate()
	require.NoError(t, err)
	other := vif.Peer{PublicKey: private.Public(), Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.3")}}
	require.NoError(
		t,
		l.hub.SetPeers([]vif.Peer{{PublicKey: l.key, Addresses: []netip.Addr{viftest.LaptopAddress}}, other}),
	)
	prober, err := transport.NewProber(private, l.laptop.Hub(), private.Public())
	require.NoError(t, err)

	forged := prober.Seal(
		transport.PingType,
		transport.Probe{Number: math.MaxUint32, Features: transport.FeatureOnExpress},
		0,
	)
	id := transport.LaptopIDOf(l.key)
	copy(forged[4:], id[:])
	s := stranger(t, l.hub)
	_, err = s.Write(
		viftest.Framed(
			string(forged),
			string(
				prober.Seal(transport.PingType, transport.Probe{Number: 2, Features: transport.FeatureOnExpress}, 0),
			),
		),
	)
	require.NoError(t, err)
	// The other laptop's own probe is answered. That laptop has no stream that this one could
	// belong to.
	require.NoError(t, s.SetReadDeadline(time.Now().Add(viftest.Timeout)))
	answer := make([]byte, transport.FrameHeader+transport.MinProbe+1)
	_, err = io.ReadFull(s, answer)
	require.NoError(t, err)
	pong, ok := prober.Open(transport.PongType, answer[transport.FrameHeader:])
	require.True(t, ok)
	require.Equal(
		t,
		transport.Probe{Number: 2, Instance: l.hub.Paths().Instance, Features: transport.FeatureLarge},
		pong,
	)
	require.Eventually(
		t,
		func() bool { return l.now() == l.streamPair },
		viftest.Timeout,
		10*time.Millisecond,
		"nothing has changed",
	)
}
