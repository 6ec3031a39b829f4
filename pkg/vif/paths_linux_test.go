package vif_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/tundev"
	"github.com/detour-dev/detour/pkg/vif/viftest"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// pathPair is a laptop and a hub with a stream and a direct path between them. The test can cut
// either.
type pathPair struct {
	t              *testing.T
	hubKey, laptop wgkey.Key
	hub            atomic.Pointer[vif.Hub]
	*vif.Interface
	udp      uint16
	relay    *net.UDPConn // stands for the hub towards the laptop
	blocked  atomic.Bool
	up, down captured // the datagrams that the relay has seen
	client   atomic.Pointer[netip.AddrPort]
	mu       sync.Mutex
	refusing bool
	open     []net.Conn
}

// captured is the last datagram of each kind, which is its first byte.
type captured struct{ kinds [256]atomic.Pointer[[]byte] }

func (c *captured) note(datagram []byte) {
	if len(datagram) > 0 {
		copied := bytes.Clone(datagram)
		c.kinds[datagram[0]].Store(&copied)
	}
}

// These are WireGuard's own kinds that are replayed.
const (
	initiationType, responseType, dataType = 1, 2, 4
)

// all waits for one datagram of each of these kinds.
func (c *captured) all(t *testing.T, kinds ...byte) (all [][]byte) {
	t.Helper()
	for _, kind := range kinds {
		require.Eventually(
			t,
			func() bool { return c.kinds[kind].Load() != nil },
			viftest.Timeout,
			time.Millisecond,
			"kind %d",
			kind,
		)
		all = append(all, *c.kinds[kind].Load())
	}
	return all
}

func pairWithDirect(t *testing.T) *pathPair {
	t.Helper()
	r := &pathPair{t: t}
	hubKey, err := wgkey.NewPrivate()
	require.NoError(t, err)
	laptopKey, err := wgkey.NewPrivate()
	require.NoError(t, err)
	r.hubKey, r.laptop = hubKey, laptopKey.Public()
	free, err := net.ListenUDP("udp4", nil)
	require.NoError(t, err)
	r.udp = free.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	require.NoError(t, free.Close())
	r.hub.Store(viftest.NewHubAt(t, hubKey, r.udp, r.laptop))
	t.Cleanup(func() { require.NoError(t, r.hub.Load().Close()) })

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			if r.refusing {
				_ = c.Close()
			} else {
				r.open = append(r.open, c)
				serving.Go(func() { _ = r.hub.Load().ServeStream(ctx, c) })
			}
			r.mu.Unlock()
		}
	})
	r.relay, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	require.NoError(t, r.relay.SetReadBuffer(4<<20))
	serving.Go(func() { r.passDatagrams(&serving) })
	t.Cleanup(func() { stop(); _ = listener.Close(); _ = r.relay.Close(); serving.Wait() })

	c := vif.Config{
		PrivateKey: laptopKey,
		PeerKey:    hubKey.Public(),
		Addresses:  []netip.Addr{viftest.LaptopAddress},
		Routes:     []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("198.18.0.0/24")},
	}
	c.Dial = func(ctx context.Context) (vif.Stream, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
		return vif.Stream{ReadWriteCloser: conn, Transport: "stream"}, err
	}
	viftest.OnLaptop(t, func() (err error) {
		r.Interface, err = vif.Up(t.Context(), c)
		return err
	})
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	waiting, cancel := context.WithTimeout(t.Context(), viftest.Timeout)
	defer cancel()
	require.NoError(t, r.Ready(waiting))
	require.Equal(t, "stream", r.Path().Transport, "the first path is the stream")
	return r
}

// passDatagrams relays between the laptop and the hub, like a NAT does.
func (r *pathPair) passDatagrams(serving *sync.WaitGroup) {
	out := map[netip.AddrPort]*net.UDPConn{}
	defer func() {
		for _, c := range out {
			_ = c.Close()
		}
	}()
	buf := make([]byte, 2<<10)
	for {
		n, from, err := r.relay.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if r.blocked.Load() {
			continue
		}
		r.up.note(buf[:n])
		r.client.Store(&from)
		c := out[from]
		if c == nil {
			if c, err = net.DialUDP("udp4", nil, &net.UDPAddr{
				IP:   net.IPv4(127, 0, 0, 1),
				Port: int(r.udp),
			}); err != nil {
				return
			}
			out[from] = c
			_ = c.SetReadBuffer(4 << 20)
			serving.Go(func() {
				back := make([]byte, 2<<10)
				for {
					n, err := c.Read(back)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err == nil && !r.blocked.Load() {
						r.down.note(back[:n])
						_, _ = r.relay.WriteToUDPAddrPort(back[:n], from)
					}
				}
			})
		}
		_, _ = c.Write(buf[:n])
	}
}

// cut ends the streams. refuse reports whether new ones are refused too.
func (r *pathPair) cut(refuse bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusing = refuse
	for _, c := range r.open {
		_ = c.Close()
	}
	r.open = nil
}

func (r *pathPair) direct() netip.AddrPort { return r.relay.LocalAddr().(*net.UDPAddr).AddrPort() }

func (r *pathPair) eventually(transport string) {
	r.t.Helper()
	require.Eventually(
		r.t,
		func() bool { return r.Path().Transport == transport },
		viftest.Timeout,
		20*time.Millisecond,
		"the path is %q",
		transport,
	)
}

// download reads from a service that sends random bytes until stop, which checks all received
// bytes.
func download(t *testing.T) (received *atomic.Int64, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(viftest.Service, 0).String())
	require.NoError(t, err)
	block, sent := viftest.RandomBytes(1<<20), sha256.New()
	stopping := make(chan struct{})
	var serving sync.WaitGroup
	serving.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for {
			select {
			case <-stopping:
				return
			default:
			}
			n, err := c.Write(block)
			_, _ = sent.Write(block[:n])
			if err != nil {
				return
			}
		}
	})
	c, err := viftest.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	received = new(atomic.Int64)
	got := sha256.New()
	ended := make(chan error, 1)
	go func() {
		buf := make([]byte, 1<<20)
		for {
			n, err := c.Read(buf)
			_, _ = got.Write(buf[:n])
			received.Add(int64(n))
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	return received, func() {
		close(stopping)
		require.ErrorIs(t, <-ended, io.EOF, "the download goes on to its end")
		serving.Wait()
		require.Equal(t, sent.Sum(nil), got.Sum(nil), "all sent bytes arrived in order")
		_ = c.Close()
		_ = l.Close()
	}
}

// A download, an idle connection and one with a question now and then survive each change of path.
func TestConnectionsSurviveEveryChangeOfPath(t *testing.T) {
	r := pairWithDirect(t)
	asking, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer asking.Close()
	idle, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer idle.Close()
	received, stop := download(t)
	progress := func() {
		t.Helper()
		viftest.RequireEcho(t, asking)
		before := received.Load()
		require.Eventually(
			t,
			func() bool { return received.Load() > before+1<<20 },
			viftest.Timeout,
			10*time.Millisecond,
			"the download goes on",
		)
	}
	progress()

	r.SetDirect([]netip.AddrPort{r.direct()})
	r.eventually(transport.DirectUDP)
	require.Equal(t, r.direct().String(), r.Path().Address)
	require.NotZero(t, r.Path().RTT)
	progress()

	r.blocked.Store(true)
	r.eventually("stream")
	progress()
	r.blocked.Store(false)
	r.eventually(transport.DirectUDP)
	progress()

	r.cut(true)
	progress()
	require.Equal(t, transport.DirectUDP, r.Path().Transport)
	r.blocked.Store(true)
	r.eventually("")
	r.blocked.Store(false)
	r.eventually(transport.DirectUDP)
	progress()
	r.cut(false)

	r.SetDirect(nil)
	r.eventually("stream")
	progress()
	stop()
	viftest.RequireEcho(t, idle)
}

func TestBulkOverDatagrams(t *testing.T) {
	r := pairWithDirect(t)
	r.SetDirect([]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.udp)})
	r.eventually(transport.DirectUDP)
	r.cut(true)
	c, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	sent := viftest.RandomBytes(20 << 20)
	var writing sync.WaitGroup
	writing.Go(func() { _, _ = c.Write(sent); _ = c.(*net.TCPConn).CloseWrite() })
	got, err := io.ReadAll(c)
	writing.Wait()
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent, got), "the echo equals the sent bytes")
	require.Equal(t, transport.DirectUDP, r.Path().Transport)
}

// A peer without a session gets no answer from the hub's port or from a laptop's, and does no harm,
// even with recorded messages.
func TestStrangersGetNoAnswer(t *testing.T) {
	r := pairWithDirect(t)
	r.SetDirect([]netip.AddrPort{r.direct()})
	r.eventually(transport.DirectUDP)
	c, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	bulk := func() {
		t.Helper()
		sent, got := viftest.RandomBytes(20_000), make([]byte, 20_000)
		require.NoError(t, c.SetDeadline(time.Now().Add(viftest.Timeout)))
		_, err := c.Write(sent)
		require.NoError(t, err)
		_, err = io.ReadFull(c, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(sent, got))
	}
	r.Device().LookupPeer(device.NoisePublicKey(r.hubKey.Public())).ExpireCurrentKeypairs() // for a handshake
	bulk()
	viftest.RequireEcho(t, c)
	toHub, toLaptop := r.up.all(
		t,
		transport.PingType,
		transport.FragmentType,
		initiationType,
		dataType,
	), r.down.all(
		t,
		transport.PongType,
		transport.FragmentType,
		responseType,
		dataType,
	)

	private, err := wgkey.NewPrivate()
	require.NoError(t, err)
	unknown, err := transport.NewProber(private, r.hubKey.Public(), private.Public())
	require.NoError(t, err)
	anybodys := [][]byte{
		unknown.Seal(transport.PingType, transport.Probe{Number: 1}, transport.MaxDatagram),
		{},
		{transport.PingType},
		{transport.PongType, 0, 0, 0},
		make([]byte, 148),
		viftest.RandomBytes(60000),
		{1, 0, 0, 0},
		{4, 0, 0, 0},
		{transport.FragmentType, 2, 1, 0, 0, 0, 0, 0, 9},
	}
	anybodys = append(anybodys, fragments(viftest.RandomBytes(5000), 1)...)
	initiation := make([]byte, 148) // a message of WireGuard with a wrong MAC
	initiation[0] = 1
	anybodys = append(anybodys, initiation)
	for _, end := range []struct {
		name    string
		address netip.AddrPort
		seen    [][]byte
	}{
		{name: "the hub", address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.udp), seen: toHub},
		{name: "the laptop", address: *r.client.Load(), seen: toLaptop},
	} {
		stranger, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(end.address))
		require.NoError(t, err)
		defer stranger.Close()
		messages := slices.Concat(anybodys, end.seen)
		for _, m := range end.seen {
			forged := bytes.Clone(m)
			forged[len(forged)-1] ^= 1
			messages = append(messages, forged)
		}
		for range 20 {
			for _, m := range messages {
				_, err := stranger.Write(m)
				require.NoError(t, err, end.name)
				if end.name == "the laptop" { // from the address of the hub's messages
					_, _ = r.relay.WriteToUDPAddrPort(m, end.address)
				}
			}
		}
		require.NoError(t, stranger.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		n, err := stranger.Read(make([]byte, 2<<10))
		require.Error(t, err, "%d bytes came back from %s", n, end.name)
	}
	require.Equal(t, 1, r.hub.Load().Paths().Sources(), "only the laptop's address is known")
	bulk()
	require.Equal(t, transport.DirectUDP, r.Path().Transport)
}

// fragments cuts a message in the form of the fragments over UDP.
func fragments(message []byte, id uint32) (all [][]byte) {
	const size = 1000
	count := (len(message) + size - 1) / size
	for i := range count {
		f := binary.BigEndian.AppendUint32([]byte{transport.FragmentType, byte(count), byte(i), 0}, id)
		all = append(all, append(f, message[i*size:min((i+1)*size, len(message))]...))
	}
	return all
}

// Connections through a former hub are reset, idle ones too. New connections go through the new
// hub.
func TestConnectionsOfAFormerHubAreReset(t *testing.T) {
	for name, direct := range map[string]bool{"over a stream": false, "over datagrams": true} {
		t.Run(name, func(t *testing.T) {
			r := pairWithDirect(t)
			if direct {
				r.SetDirect([]netip.AddrPort{r.direct()})
				r.eventually(transport.DirectUDP)
			}
			var idle []net.Conn
			for range 5 {
				c, err := viftest.Dial("tcp", viftest.Echo(t).String())
				require.NoError(t, err)
				defer c.Close()
				viftest.RequireEcho(t, c)
				idle = append(idle, c)
			}
			old := r.hub.Load()
			r.cut(true)
			// Close would reset the flows in order, but a process that is killed does not. So the
			// path is blocked first.
			r.blocked.Store(true)
			require.NoError(t, old.Close())
			r.hub.Store(viftest.NewHubAt(t, r.hubKey, r.udp, r.laptop))
			r.blocked.Store(false)
			r.cut(false)
			for _, c := range idle {
				require.NoError(t, c.SetReadDeadline(time.Now().Add(viftest.Timeout)))
				_, err := c.Read(make([]byte, 1))
				require.ErrorIs(t, err, syscall.ECONNRESET)
			}
			c, err := viftest.Dial("tcp", viftest.Echo(t).String())
			require.NoError(t, err)
			defer c.Close()
			viftest.RequireEcho(t, c)
			require.Empty(
				t,
				slices.DeleteFunc(
					r.Firewall().OpenFlows(),
					func(id tundev.FlowID) bool { return id.Local == c.LocalAddr().(*net.TCPAddr).AddrPort() },
				),
				"the closed connections are forgotten",
			)
		})
	}
}

// A laptop whose process has ended counts as gone at once, on a path too that nobody sees end.
func TestLaptopOnADirectPathIsMissedWhenItEnds(t *testing.T) {
	r := pairWithDirect(t)
	r.SetDirect([]netip.AddrPort{r.direct()})
	r.eventually(transport.DirectUDP)
	connected := func() bool { return r.hub.Load().Connected(r.laptop, time.Hour) }
	require.Eventually(t, connected, viftest.Timeout, 10*time.Millisecond)
	r.cut(true)
	require.Never(
		t,
		func() bool { return !connected() },
		3*vif.StreamGrace,
		50*time.Millisecond,
		"it is there without a stream",
	)
	r.blocked.Store(true)
	require.Eventually(t, func() bool { return !connected() }, viftest.Timeout, 10*time.Millisecond)
	r.blocked.Store(false)
	require.Eventually(t, connected, viftest.Timeout, 10*time.Millisecond)
}
