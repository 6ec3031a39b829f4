package vif

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/tuning"
	"github.com/detour-dev/detour/pkg/vif/remap"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/tundev"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

const (
	// A stream that ended is dialled again after a pause that grows, at first to redialSoon: a traffic-manager that restarts is back
	// within seconds.
	redialMin  = 200 * time.Millisecond
	redialSoon = time.Second
	redialMax  = 5 * time.Second
	soon       = 30 * time.Second
	// deadAfter is how long the cluster may be silent before it counts as gone, and a stream before it is dialled anew.
	deadAfter = 6 * time.Second
	// Pauses between attempts at a handshake.
	handshakeMin = 250 * time.Millisecond
	handshakeMax = 5 * time.Second
)

// UpgradeProtocol names a stream of WireGuard messages in the Upgrade header of HTTP/1.1.
const UpgradeProtocol = "detour-wireguard"

// Stream is what carries WireGuard's messages until a direct path is found, and when none is.
type Stream struct {
	io.ReadWriteCloser
	// Transport is its name for people.
	Transport string
}

// Config describes the laptop's end.
type Config struct {
	PrivateKey, PeerKey wgkey.Key
	// Addresses are the laptop's on the VIF, at most one per IP family.
	Addresses []netip.Addr
	// Routes are the networks behind the VIF, as the laptop sees them.
	Routes []netip.Prefix
	// Remap are networks of the cluster that the laptop sees at other addresses.
	Remap remap.Table
	// Name of the interface; "detour%d" lets the kernel number it, and is the default.
	Name string
	// MTU is StreamMTU when 0.
	MTU int
	// InboundPort is the one TCP port of Addresses that the cluster may connect to.
	InboundPort uint16
	// Dial opens the stream that carries WireGuard. It is called again, for ever, when the stream ends.
	Dial func(context.Context) (Stream, error)
	// OpenTUN makes the network interface; nil for one in the network of this process. Dial uses this process's network
	// in any case.
	OpenTUN tundev.OpenFunc
	// Log may be nil.
	Log *slog.Logger
}

// Interface is the laptop's end of the VIF.
type Interface struct {
	log      *slog.Logger
	name     string
	peer     wgkey.Key
	paths    *transport.PathSelector
	firewall *tundev.Firewall
	device   *device.Device
	host     tundev.HostInterface
	remapper *tundev.Remapper
	cancel   context.CancelFunc
	done     sync.WaitGroup

	mu           sync.Mutex
	received     uint64
	lastReceived time.Time // when the hub was last heard
	problem      error     // why the last dial failed
	connected    chan struct{}
}

// Up makes the interface and starts to connect. It returns when the interface is there; Ready says when it is connected.
func Up(ctx context.Context, c Config) (*Interface, error) {
	if c.MTU == 0 {
		c.MTU = StreamMTU
	}
	if c.Name == "" {
		c.Name = "detour%d"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OpenTUN == nil {
		c.OpenTUN = tundev.Open
	}
	device, host, err := c.OpenTUN(tundev.Options{Name: c.Name, MTU: c.MTU, Addresses: c.Addresses})
	if err != nil {
		return nil, err
	}
	i, err := start(c, device, host)
	if err != nil {
		_ = device.Close()
		return nil, err
	}
	if err := host.Configure(c.Addresses, c.MTU); err != nil {
		_ = i.Close()
		return nil, err
	}
	if err := i.SetRoutes(c.Routes, c.Remap); err != nil {
		_ = i.Close()
		return nil, err
	}
	if err := i.device.Up(); err != nil {
		_ = i.Close()
		return nil, fmt.Errorf("start WireGuard: %w", err)
	}
	return i, ctx.Err()
}

// start puts WireGuard on a TUN and begins to dial.
func start(c Config, t tun.Device, host tundev.HostInterface) (*Interface, error) {
	name, err := t.Name()
	if err != nil {
		return nil, fmt.Errorf("ask for the interface's name: %w", err)
	}
	var setLarge func(bool)
	if o, ok := t.(tundev.LargePackets); ok {
		setLarge = o.SetLarge
	}
	paths, err := transport.NewPathSelector(c.PrivateKey, c.PeerKey, setLarge, c.Log)
	if err != nil {
		return nil, err
	}
	seen := &tundev.Remapper{Device: t}
	i := &Interface{
		log:       c.Log,
		name:      name,
		peer:      c.PeerKey,
		paths:     paths,
		firewall:  tundev.NewFirewall(seen, c.InboundPort),
		host:      host,
		remapper:  seen,
		connected: make(chan struct{}),
	}
	i.device = device.NewDevice(tundev.NewClassifier(i.firewall), paths.Bind(), wireguardLog(c.Log))
	var conf strings.Builder
	fmt.Fprintf(&conf, "private_key=%s\npublic_key=%s\nendpoint=%s\npersistent_keepalive_interval=%d\n", c.PrivateKey.Hex(), c.PeerKey.Hex(), transport.ChosenEndpoint, keepalive)
	// The one peer may send from any address: which packets get in is the filter's business, where they go the routes'.
	conf.WriteString("replace_allowed_ips=true\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n")
	if err := i.device.IpcSet(conf.String()); err != nil {
		i.device.Close()
		return nil, fmt.Errorf("configure WireGuard: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	i.cancel = cancel
	i.done.Go(func() { i.dial(ctx, c.Dial) })
	i.done.Go(func() { i.watch(ctx) })
	i.done.Go(func() { i.paths.Run(ctx) })
	i.done.Go(func() { i.follow(ctx) })
	return i, nil
}

// Name is the interface's name.
func (i *Interface) Name() string { return i.name }

// SetRoutes makes routes the whole set of networks behind the VIF, and table of those that are seen elsewhere than they are.
func (i *Interface) SetRoutes(routes []netip.Prefix, table remap.Table) error {
	if len(table) > 0 {
		i.paths.AllowLarge(false)
	}
	i.remapper.Set(table)
	if len(table) == 0 {
		i.paths.AllowLarge(true)
	}
	return i.host.SetRoutes(routes)
}

// SetDirect makes these the hub's addresses for datagrams, the preferred ones first. They are probed, and used while they work.
func (i *Interface) SetDirect(addresses []netip.AddrPort) { i.paths.SetDirect(addresses) }

// Path is the way to the cluster now.
func (i *Interface) Path() transport.Path { return i.paths.Path() }

// Ready waits for the first authentic packet of the cluster.
func (i *Interface) Ready(ctx context.Context) error {
	select {
	case <-i.connected:
		return nil
	case <-ctx.Done():
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.problem != nil {
			return fmt.Errorf("the tunnel did not come up: %w", i.problem)
		}
		return fmt.Errorf("the tunnel did not come up: no answer from the traffic-manager: %w", ctx.Err())
	}
}

// Alive says whether the cluster was heard lately.
func (i *Interface) Alive() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return time.Since(i.lastReceived) < deadAfter
}

// LastReceived is when the last authentic packet of the cluster came, to within a quarter of a second; zero if never.
func (i *Interface) LastReceived() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.lastReceived
}

// Problem is why the tunnel cannot be opened now, or nil.
func (i *Interface) Problem() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.problem
}

// Close ends the tunnel and takes the interface, its addresses and its routes away.
func (i *Interface) Close() error {
	i.cancel()
	i.device.Close()
	i.done.Wait()
	return nil
}

// dial keeps one stream open, with a growing pause between failures.
func (i *Interface) dial(ctx context.Context, open func(context.Context) (Stream, error)) {
	backoff, worked := netx.Backoff{Min: redialMin, Max: redialMax}, time.Now()
	for ctx.Err() == nil {
		stream, err := open(ctx)
		if err == nil {
			i.setProblem(nil)
			i.log.Debug("the tunnel's stream is open", "transport", stream.Transport)
			opened := time.Now()
			err = i.serve(ctx, stream, open)
			if time.Since(opened) > deadAfter {
				worked = time.Now()
				backoff.Reset()
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			i.setProblem(err)
		}
		backoff.Max = redialMax
		if time.Since(worked) < soon {
			backoff.Max = redialSoon
		}
		pause := backoff.Next()
		i.log.Info("the tunnel's stream ended, opening a new one", "err", err, "in", pause)
		_ = netx.Sleep(ctx, pause)
	}
}

// serve runs one stream, and the express lanes beside it.
func (i *Interface) serve(ctx context.Context, opened Stream, open func(context.Context) (Stream, error)) error {
	return i.carry(ctx, opened, func(s *transport.StreamWire) (end func()) {
		remove := i.paths.AddStream(s, opened.Transport)
		ctx, stop := context.WithCancel(ctx)
		var express sync.WaitGroup
		express.Go(func() { i.maintainExpress(ctx, s, open) })
		return func() { remove(); stop(); express.Wait() }
	}, i.checkSilence)
}

// carry runs a stream until it ends, or wrong, asked each second, says why it should.
func (i *Interface) carry(ctx context.Context, rw io.ReadWriteCloser, begin func(*transport.StreamWire) (end func()), wrong func(*transport.StreamWire) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	end := func() {}
	err := i.paths.Serve(ctx, rw, func(s *transport.StreamWire) {
		end = begin(s)
		watch.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					if err := wrong(s); err != nil {
						cancel(err)
						return
					}
				}
			}
		})
	})
	end()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	watch.Wait()
	return err
}

// silent says that the cluster has fallen silent on a stream.
func (i *Interface) checkSilence(s *transport.StreamWire) error {
	if i.paths.Unanswered(s) > deadAfter {
		return errSilent
	}
	return nil
}

// follow brings WireGuard's session, and what the hub knows of this laptop, along when the path or the hub changes.
func (i *Interface) follow(ctx context.Context) {
	var (
		greeting  time.Time // since when a handshake is wanted; zero when there is none to wait for
		pause     time.Duration
		restarted bool // flows of the hub's former process have to end
		known     bool // an instance of the hub is
		resets    int
	)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	greet := func() {
		greeting, pause = time.Now(), handshakeMin
		i.startHandshake()
		timer.Reset(pause)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.paths.PathChanged():
			if !known && greeting.IsZero() {
				greet()
			} else if peer := i.device.LookupPeer(device.NoisePublicKey(i.peer)); peer != nil {
				peer.SendKeepalive() // the hub answers where it last heard this laptop
			}
		case <-i.paths.HubRestarted():
			if known {
				i.log.Info("another process of the traffic-manager answers: connections through the one before are reset")
				restarted = true
			}
			if known || greeting.IsZero() && !i.handshakeDone(time.Time{}) {
				greet()
			}
			known = true
		case <-timer.C:
			switch {
			case !greeting.IsZero() && !i.handshakeDone(greeting):
				// The hub may learn of this laptop a moment later than the laptop of the hub, and WireGuard alone would wait 5 s.
				pause = min(pause*2, handshakeMax)
				i.startHandshake()
				timer.Reset(pause)
				continue
			case !greeting.IsZero():
				greeting = time.Time{}
				if restarted {
					restarted, resets = false, 3
				}
			}
			if resets > 0 {
				resets--
				if err := i.firewall.ResetFlows(); err != nil {
					i.log.Warn("resetting connections failed", "err", err)
				}
				timer.Reset(time.Second)
			}
		}
	}
}

// greet starts a handshake at once.
func (i *Interface) startHandshake() {
	peer := i.device.LookupPeer(device.NoisePublicKey(i.peer))
	if peer == nil {
		return
	}
	peer.ExpireCurrentKeypairs()
	if err := peer.SendHandshakeInitiation(false); err != nil {
		i.log.Debug("starting a handshake failed", "err", err)
	}
}

// shook says whether a handshake was completed after a time; the zero time asks whether there ever was one.
func (i *Interface) handshakeDone(after time.Time) bool {
	state, err := i.device.IpcGet()
	if err != nil {
		return false
	}
	at := parsePeers(state)[i.peer.Hex()].handshake
	return at != 0 && time.Unix(0, at).After(after)
}

var errSilent = errors.New("the traffic-manager fell silent")

func (i *Interface) setProblem(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.problem = err
}

// watch notes when the cluster was heard.
func (i *Interface) watch(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var idle tuning.IdleMemory
	for first := true; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		state, err := i.device.IpcGet()
		if err != nil {
			continue
		}
		counters := parsePeers(state)[i.peer.Hex()]
		received := counters.received
		idle.Note(received+counters.sent, time.Now())
		i.mu.Lock()
		if received > i.received {
			i.received, i.lastReceived, i.problem = received, time.Now(), nil
			if first {
				first = false
				close(i.connected)
				tick.Reset(statsInterval)
			}
		}
		i.mu.Unlock()
	}
}

// DialFunc connects somewhere, like net.Dialer.DialContext: it says from which network.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// RTT measures the round trip through the tunnel: the time until the hub refuses a connection to its own address.
func RTT(ctx context.Context, dial DialFunc, hub netip.Addr) (time.Duration, error) {
	const discard = 9
	start := time.Now()
	c, err := dial(ctx, "tcp", netip.AddrPortFrom(hub, discard).String())
	took := time.Since(start)
	if err == nil {
		_ = c.Close()
		return took, nil
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("measure the round trip: %w", err)
	}
	return took, nil
}
