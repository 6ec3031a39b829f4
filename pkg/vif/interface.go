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
	"github.com/detour-dev/detour/pkg/vif/remap"
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
	greetMin = 250 * time.Millisecond
	greetMax = 5 * time.Second
)

// Stream is what carries WireGuard's messages until a direct path is found, and when none is.
type Stream struct {
	io.ReadWriteCloser
	// Transport is its name for people.
	Transport string
}

// Config describes the laptop's end.
type Config struct {
	PrivateKey, PeerKey Key
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
	// Namespace holds the interface; nil for the network of this process. Config.Dial is the host's in any case.
	Namespace *Namespace
	// HostLoopback lets processes in the Namespace reach the host's 127.0.0.1, as the address HostLoopback.
	HostLoopback bool
	Log          *slog.Logger
}

// Interface is the laptop's end of the VIF.
type Interface struct {
	log    *slog.Logger
	name   string
	peer   Key
	ladder *ladder
	tun    *filteredTUN
	device *device.Device
	host   hostInterface
	remap  *remappedTUN
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	received uint64
	last     time.Time // when the hub was last heard
	problem  error     // why the last dial failed
	heard    chan struct{}
}

// hostInterface is what the operating system must do. Close of the TUN takes addresses and routes with it.
type hostInterface interface {
	// configure makes addresses all that the interface has, and brings it up.
	configure(addresses []netip.Addr, mtu int) error
	// setRoutes makes routes the whole set behind the interface.
	setRoutes(routes []netip.Prefix) error
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
	device, host, err := open(c)
	if err != nil {
		return nil, err
	}
	i, err := start(c, device, host)
	if err != nil {
		_ = device.Close()
		return nil, err
	}
	if err := host.configure(c.Addresses, c.MTU); err != nil {
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

func open(c Config) (tun.Device, hostInterface, error) {
	if c.Namespace != nil {
		return c.Namespace.createTUN(c)
	}
	return createTUN(c.Name, c.MTU)
}

// start puts WireGuard on a TUN and begins to dial.
func start(c Config, t tun.Device, host hostInterface) (*Interface, error) {
	name, err := t.Name()
	if err != nil {
		return nil, fmt.Errorf("ask for the interface's name: %w", err)
	}
	prober, err := newProber(c.PrivateKey, c.PeerKey, c.PrivateKey.PublicKey())
	if err != nil {
		return nil, err
	}
	seen := &remappedTUN{Device: t}
	i := &Interface{log: c.Log, name: name, peer: c.PeerKey, ladder: newLadder(prober, c.Log), tun: &filteredTUN{Device: seen, port: c.InboundPort}, host: host, remap: seen, heard: make(chan struct{})}
	if o, ok := t.(interface{ setLarge(bool) }); ok {
		i.ladder.setLarge = o.setLarge
	}
	i.device = device.NewDevice(newSortedTUN(i.tun), i.ladder.bind, wireguardLog(c.Log))
	var conf strings.Builder
	fmt.Fprintf(&conf, "private_key=%s\npublic_key=%s\nendpoint=%s\npersistent_keepalive_interval=%d\n", c.PrivateKey.hex(), c.PeerKey.hex(), chosenName, keepalive)
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
	i.done.Go(func() { i.ladder.run(ctx) })
	i.done.Go(func() { i.follow(ctx) })
	return i, nil
}

// Name is the interface's name.
func (i *Interface) Name() string { return i.name }

// SetRoutes makes routes the whole set of networks behind the VIF, and table of those that are seen elsewhere than they are.
func (i *Interface) SetRoutes(routes []netip.Prefix, table remap.Table) error {
	if len(table) > 0 && i.ladder.unmapped.Swap(false) && i.ladder.setLarge != nil {
		i.ladder.setLarge(false)
	}
	i.remap.set(table)
	i.ladder.unmapped.Store(len(table) == 0)
	return i.host.setRoutes(routes)
}

// SetDirect makes these the hub's addresses for datagrams, the preferred ones first. They are probed, and used while they work.
func (i *Interface) SetDirect(addresses []netip.AddrPort) { i.ladder.setDirect(addresses) }

// Path is the way to the cluster now.
func (i *Interface) Path() Path { return i.ladder.path() }

// Ready waits for the first authentic packet of the cluster.
func (i *Interface) Ready(ctx context.Context) error {
	select {
	case <-i.heard:
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
	return time.Since(i.last) < deadAfter
}

// LastReceived is when the last authentic packet of the cluster came, to within a quarter of a second; zero if never.
func (i *Interface) LastReceived() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last
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
	return i.carry(ctx, opened, func(s *stream) (end func()) {
		remove := i.ladder.add(&way{wire: s, transport: opened.Transport})
		ctx, stop := context.WithCancel(ctx)
		var lanes sync.WaitGroup
		lanes.Go(func() { i.keepLane(ctx, s, open) })
		return func() { remove(); stop(); lanes.Wait() }
	}, i.silent)
}

// carry runs a stream until it ends, or wrong, asked each second, says why it should.
func (i *Interface) carry(ctx context.Context, rw io.ReadWriteCloser, begin func(*stream) (end func()), wrong func(*stream) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	end := func() {}
	err := i.ladder.bind.serve(ctx, rw, func(s *stream) {
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
func (i *Interface) silent(s *stream) error {
	if i.ladder.silent(s) > deadAfter {
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
		greeting, pause = time.Now(), greetMin
		i.greet()
		timer.Reset(pause)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.ladder.moved:
			if !known && greeting.IsZero() {
				greet()
			} else if peer := i.device.LookupPeer(device.NoisePublicKey(i.peer)); peer != nil {
				peer.SendKeepalive() // the hub answers where it last heard this laptop
			}
		case <-i.ladder.restarted:
			if known {
				i.log.Info("another process of the traffic-manager answers: connections through the one before are reset")
				restarted = true
			}
			if known || greeting.IsZero() && !i.shook(time.Time{}) {
				greet()
			}
			known = true
		case <-timer.C:
			switch {
			case !greeting.IsZero() && !i.shook(greeting):
				// The hub may learn of this laptop a moment later than the laptop of the hub, and WireGuard alone would wait 5 s.
				pause = min(pause*2, greetMax)
				i.greet()
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
				if err := i.tun.resetFlows(); err != nil {
					i.log.Warn("resetting connections failed", "err", err)
				}
				timer.Reset(time.Second)
			}
		}
	}
}

// greet starts a handshake at once.
func (i *Interface) greet() {
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
func (i *Interface) shook(after time.Time) bool {
	state, err := i.device.IpcGet()
	if err != nil {
		return false
	}
	at := parsePeers(state)[i.peer.hex()].handshake
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
	var idle memory
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
		counters := parsePeers(state)[i.peer.hex()]
		received := counters.received
		idle.note(received+counters.sent, time.Now())
		i.mu.Lock()
		if received > i.received {
			i.received, i.last, i.problem = received, time.Now(), nil
			if first {
				first = false
				close(i.heard)
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
