package vif

import (
	"bytes"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
	hub    *Hub
	laptop *Interface
	key    Key
	lanes
}

// lanes are a laptop's stream and its lane at both ends, nil where there is none.
type lanes struct{ stream, lane, hubStream, hubLane *stream }

func withLanes(t *testing.T) *twoLanes {
	t.Helper()
	l := &twoLanes{}
	l.hub, l.laptop, l.key, _ = pairWith(t, Config{}, func(rw io.ReadWriteCloser) io.ReadWriteCloser { return &tapped{ReadWriteCloser: rw} })
	l.inUse(t)
	return l
}

func (l *twoLanes) now() (now lanes) {
	if now.stream, _ = l.laptop.ladder.choose().(*stream); now.stream != nil {
		now.lane = now.stream.lane.Load()
	}
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	if now.hubStream = l.hub.bind.stream(l.hub.peers[l.key].stream); now.hubStream != nil {
		now.hubLane = now.hubStream.lane.Load()
	}
	return now
}

// inUse waits until both ends use a lane, and none of the streams that are given.
func (l *twoLanes) inUse(t *testing.T, gone ...*stream) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.lanes = l.now()
		all := []*stream{l.stream, l.lane, l.hubStream, l.hubLane}
		return !slices.Contains(all, nil) && !slices.ContainsFunc(gone, func(s *stream) bool { return slices.Contains(all, s) })
	}, 2*patience, 10*time.Millisecond, "a lane is to be used") // a silent one is given up after some seconds
}

func tap(s *stream) *tapped { return s.rw.(Stream).ReadWriteCloser.(*tapped) }

func TestBulkAndTheRestGoInLanes(t *testing.T) {
	l := withLanes(t)
	c, err := dialFromLaptop("tcp", echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	bulk, lane := tap(l.stream), tap(l.lane)
	require.Eventually(t, func() bool { // on a machine that stands still for a second the lane is not used
		sent, received := bulk.sent.Load(), bulk.received.Load()
		const questions, probes = 50, 1000
		for range questions {
			flowing(t, c)
		}
		const most = questions*len("still there?") + probes
		return bulk.sent.Load()-sent < int64(most) && bulk.received.Load()-received < int64(most)
	}, patience, time.Millisecond, "questions and answers are to pass the lane")

	const size = 4 << 20
	sent := noise(size)
	before := [...]int64{lane.sent.Load(), lane.received.Load()}
	var writing sync.WaitGroup
	writing.Go(func() { _, _ = c.Write(sent); _ = c.(*net.TCPConn).CloseWrite() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	got, err := io.ReadAll(c)
	writing.Wait()
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent, got), "what comes back is what was sent")
	require.Less(t, lane.sent.Load()-before[0], int64(size/4), "bulk passes the stream")
	require.Less(t, lane.received.Load()-before[1], int64(size/4), "bulk passes the stream")
}

// Whichever of the two ends, or dies without an end, connections go on and both are there again.
func TestLanesEnd(t *testing.T) {
	for name, end := range map[string]func(*twoLanes) (gone []*stream){
		"the lane":                    func(l *twoLanes) []*stream { l.lane.close(); return []*stream{l.lane, l.hubLane} },
		"the lane, at the hub's side": func(l *twoLanes) []*stream { l.hubLane.close(); return []*stream{l.lane, l.hubLane} },
		"the lane, without an end": func(l *twoLanes) []*stream {
			tap(l.lane).deaf.Store(true)
			return []*stream{l.lane, l.hubLane}
		},
		"the stream": func(l *twoLanes) []*stream {
			l.stream.close()
			return []*stream{l.stream, l.lane, l.hubStream, l.hubLane}
		},
		"the stream, at the hub's side": func(l *twoLanes) []*stream {
			l.hubStream.close()
			return []*stream{l.stream, l.lane, l.hubStream, l.hubLane}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := withLanes(t)
			c, err := dialFromLaptop("tcp", echo(t).String())
			require.NoError(t, err)
			defer c.Close()
			flowing(t, c)
			gone := end(l)
			flowing(t, c)
			l.inUse(t, gone...)
			flowing(t, c)
		})
	}
}

// A laptop on a direct path has no lane.
func TestNoLaneBesideDatagrams(t *testing.T) {
	r := climb(t)
	streams := func() int {
		b := r.hub.Load().bind
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.streams)
	}
	require.Eventually(t, func() bool { return streams() == 2 }, patience, 10*time.Millisecond)
	r.SetDirect([]netip.AddrPort{r.direct()})
	r.eventually(DirectUDP)
	require.Eventually(t, func() bool { return streams() == 1 }, patience, 10*time.Millisecond)
	r.blocked.Store(true)
	r.eventually("stream")
	require.Eventually(t, func() bool { return streams() == 2 }, patience, 10*time.Millisecond)
}

// Only who holds a laptop's key can give it a lane, and only its own stream.
func TestStrangersAreNoLanes(t *testing.T) {
	l := withLanes(t)
	private, err := NewPrivateKey()
	require.NoError(t, err)
	other := Peer{PublicKey: private.PublicKey(), Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.3")}}
	require.NoError(t, l.hub.SetPeers([]Peer{{PublicKey: l.key, Addresses: []netip.Addr{laptopAddress}}, other}))
	prober, err := newProber(private, l.hub.key.PublicKey(), private.PublicKey())
	require.NoError(t, err)

	forged := prober.seal(pingType, probe{number: math.MaxUint32, takes: onLane}, 0)
	id := probeIDOf(l.key)
	copy(forged[4:], id[:])
	s := stranger(t, l.hub)
	_, err = s.Write(frame(string(forged), string(prober.seal(pingType, probe{number: 2, takes: onLane}, 0))))
	require.NoError(t, err)
	// The other laptop's own probe is answered, but it has no stream that this could be the lane of.
	require.NoError(t, s.SetReadDeadline(time.Now().Add(patience)))
	answer := make([]byte, frameHeader+minProbe+1)
	_, err = io.ReadFull(s, answer)
	require.NoError(t, err)
	says, ok := prober.open(pongType, answer[frameHeader:])
	require.True(t, ok)
	require.Equal(t, probe{number: 2, instance: l.hub.instance, takes: takesLarge}, says)
	require.Eventually(t, func() bool { return l.now() == l.lanes }, patience, 10*time.Millisecond, "nothing has changed")
}

// A hub of an older version does not know lanes, and is not given one.
func TestLanesAreForHubsThatKnowThem(t *testing.T) {
	private, err := NewPrivateKey()
	require.NoError(t, err)
	p, err := newProber(private, private.PublicKey(), private.PublicKey())
	require.NoError(t, err)
	l := newLadder(p, slog.New(slog.DiscardHandler))
	near, _ := sockets(t)
	s := newStream("stream-1", near)
	defer l.add(&way{wire: s, transport: "stream"})()
	l.since = l.since.Add(-time.Hour)
	for _, takes := range []byte{takesLarge, takesLarge | takesLanes, takesLarge} {
		l.asked[7] = question{l.active.Load(), time.Now()}
		l.answered(s, p.seal(pongType, probe{number: 7, takes: takes}, 0))
		require.Equal(t, takes&takesLanes != 0, l.wantsLane(s))
	}
}
