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

// tapped is a laptop's stream whose bytes are counted. It may lose what the laptop sends.
type tapped struct {
	io.ReadWriteCloser
	sent, received atomic.Int64
	deaf           atomic.Bool
}

func (s *tapped) Read(b []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(b)
	s.received.Add(int64(n))
	return n, err
}

func (s *tapped) Write(b []byte) (int, error) {
	s.sent.Add(int64(len(b)))
	if s.deaf.Load() {
		return len(b), nil
	}
	return s.ReadWriteCloser.Write(b)
}

// twoLanes is a laptop and a hub that use a stream and a lane beside it.
type twoLanes struct {
	hub    *vif.Hub
	laptop *vif.Interface
	key    wgkey.Key
	lanes
}

// lanes are a laptop's stream and its lane at both ends, nil where there is none.
type lanes struct{ stream, lane, hubStream, hubLane *transport.StreamWire }

func withLanes(t *testing.T) *twoLanes {
	t.Helper()
	l := &twoLanes{}
	l.hub, l.laptop, l.key, _ = viftest.PairWith(t, vif.Config{}, func(rw io.ReadWriteCloser) io.ReadWriteCloser { return &tapped{ReadWriteCloser: rw} })
	l.inUse(t)
	return l
}

func (l *twoLanes) now() (now lanes) {
	if now.stream, _ = l.laptop.Paths().Current().(*transport.StreamWire); now.stream != nil {
		now.lane = now.stream.Express()
	}
	if now.hubStream = l.hub.Paths().Stream(l.key); now.hubStream != nil {
		now.hubLane = now.hubStream.Express()
	}
	return now
}

// inUse waits until both ends use a lane, and none of the streams that are given.
func (l *twoLanes) inUse(t *testing.T, gone ...*transport.StreamWire) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.lanes = l.now()
		all := []*transport.StreamWire{l.stream, l.lane, l.hubStream, l.hubLane}
		return !slices.Contains(all, nil) && !slices.ContainsFunc(gone, func(s *transport.StreamWire) bool { return slices.Contains(all, s) })
	}, 2*viftest.Timeout, 10*time.Millisecond, "a lane is to be used") // a silent one is given up after some seconds
}

func tap(s *transport.StreamWire) *tapped { return s.Carrier().(vif.Stream).ReadWriteCloser.(*tapped) }

func TestBulkAndTheRestGoInLanes(t *testing.T) {
	l := withLanes(t)
	c, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	bulk, lane := tap(l.stream), tap(l.lane)
	require.Eventually(t, func() bool { // on a machine that stands still for a second the lane is not used
		sent, received := bulk.sent.Load(), bulk.received.Load()
		const questions, probes = 50, 1000
		for range questions {
			viftest.RequireEcho(t, c)
		}
		const most = questions*len("still there?") + probes
		return bulk.sent.Load()-sent < int64(most) && bulk.received.Load()-received < int64(most)
	}, viftest.Timeout, time.Millisecond, "questions and answers are to pass the lane")

	const size = 4 << 20
	sent := viftest.RandomBytes(size)
	before := [...]int64{lane.sent.Load(), lane.received.Load()}
	var writing sync.WaitGroup
	writing.Go(func() { _, _ = c.Write(sent); _ = c.(*net.TCPConn).CloseWrite() })
	require.NoError(t, c.SetDeadline(time.Now().Add(viftest.Timeout)))
	got, err := io.ReadAll(c)
	writing.Wait()
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent, got), "what comes back is what was sent")
	require.Less(t, lane.sent.Load()-before[0], int64(size/4), "bulk passes the stream")
	require.Less(t, lane.received.Load()-before[1], int64(size/4), "bulk passes the stream")
}

// Whichever of the two ends, or dies without an end, connections go on and both are there again.
func TestLanesEnd(t *testing.T) {
	for name, end := range map[string]func(*twoLanes) (gone []*transport.StreamWire){
		"the lane": func(l *twoLanes) []*transport.StreamWire {
			l.lane.Close()
			return []*transport.StreamWire{l.lane, l.hubLane}
		},
		"the lane, at the hub's side": func(l *twoLanes) []*transport.StreamWire {
			l.hubLane.Close()
			return []*transport.StreamWire{l.lane, l.hubLane}
		},
		"the lane, without an end": func(l *twoLanes) []*transport.StreamWire {
			tap(l.lane).deaf.Store(true)
			return []*transport.StreamWire{l.lane, l.hubLane}
		},
		"the stream": func(l *twoLanes) []*transport.StreamWire {
			l.stream.Close()
			return []*transport.StreamWire{l.stream, l.lane, l.hubStream, l.hubLane}
		},
		"the stream, at the hub's side": func(l *twoLanes) []*transport.StreamWire {
			l.hubStream.Close()
			return []*transport.StreamWire{l.stream, l.lane, l.hubStream, l.hubLane}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := withLanes(t)
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

// A laptop on a direct path has no lane.
func TestNoLaneBesideDatagrams(t *testing.T) {
	r := climb(t)
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

// Only who holds a laptop's key can give it a lane, and only its own stream.
func TestStrangersAreNoLanes(t *testing.T) {
	l := withLanes(t)
	private, err := wgkey.NewPrivate()
	require.NoError(t, err)
	other := vif.Peer{PublicKey: private.Public(), Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.3")}}
	require.NoError(t, l.hub.SetPeers([]vif.Peer{{PublicKey: l.key, Addresses: []netip.Addr{viftest.LaptopAddress}}, other}))
	prober, err := transport.NewProber(private, l.laptop.Hub(), private.Public())
	require.NoError(t, err)

	forged := prober.Seal(transport.PingType, transport.Probe{Number: math.MaxUint32, Features: transport.FeatureOnExpress}, 0)
	id := transport.LaptopIDOf(l.key)
	copy(forged[4:], id[:])
	s := stranger(t, l.hub)
	_, err = s.Write(viftest.Framed(string(forged), string(prober.Seal(transport.PingType, transport.Probe{Number: 2, Features: transport.FeatureOnExpress}, 0))))
	require.NoError(t, err)
	// The other laptop's own probe is answered, but it has no stream that this could be the lane of.
	require.NoError(t, s.SetReadDeadline(time.Now().Add(viftest.Timeout)))
	answer := make([]byte, transport.FrameHeader+transport.MinProbe+1)
	_, err = io.ReadFull(s, answer)
	require.NoError(t, err)
	says, ok := prober.Open(transport.PongType, answer[transport.FrameHeader:])
	require.True(t, ok)
	require.Equal(t, transport.Probe{Number: 2, Instance: l.hub.Paths().Instance, Features: transport.FeatureLarge}, says)
	require.Eventually(t, func() bool { return l.now() == l.lanes }, viftest.Timeout, 10*time.Millisecond, "nothing has changed")
}
