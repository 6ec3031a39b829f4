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
)

const (
	redialMin = 200 * time.Millisecond
	redialMax = 5 * time.Second
	// deadAfter is how long the cluster may be silent before the stream is given up and dialled anew. The hub speaks each second.
	deadAfter = 6 * time.Second
)

// Config describes the laptop's end.
type Config struct {
	PrivateKey, PeerKey Key
	// Addresses are the laptop's on the VIF, at most one per IP family.
	Addresses []netip.Addr
	// Routes are the networks behind the VIF.
	Routes []netip.Prefix
	// Name of the interface; "detour%d" lets the kernel number it, and is the default.
	Name string
	// MTU is StreamMTU when 0.
	MTU int
	// InboundPort is the one TCP port of Addresses that the cluster may connect to.
	InboundPort uint16
	// Dial opens the stream that carries WireGuard. It is called again, for ever, when the stream ends.
	Dial func(context.Context) (io.ReadWriteCloser, error)
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
	bind   *streamBind
	device *device.Device
	host   hostInterface
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
	// configure gives the interface its addresses and brings it up.
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
	if err := i.SetRoutes(c.Routes); err != nil {
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
	bind := newStreamBind(true)
	i := &Interface{
		log: c.Log, name: name, peer: c.PeerKey, bind: bind, host: host, heard: make(chan struct{}),
		device: device.NewDevice(&filteredTUN{Device: t, port: c.InboundPort}, bind, wireguardLog(c.Log)),
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "private_key=%s\npublic_key=%s\nendpoint=%s\npersistent_keepalive_interval=%d\n", c.PrivateKey.hex(), c.PeerKey.hex(), latestName, keepalive)
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
	return i, nil
}

// Name is the interface's name.
func (i *Interface) Name() string { return i.name }

// SetRoutes makes routes the whole set of networks behind the VIF.
func (i *Interface) SetRoutes(routes []netip.Prefix) error { return i.host.setRoutes(routes) }

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
func (i *Interface) dial(ctx context.Context, open func(context.Context) (io.ReadWriteCloser, error)) {
	pause := redialMin
	for ctx.Err() == nil {
		rw, err := open(ctx)
		if err == nil {
			i.setProblem(nil)
			i.log.Debug("the tunnel's stream is open")
			opened := time.Now()
			err = i.serve(ctx, rw)
			if time.Since(opened) > deadAfter {
				pause = redialMin
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			i.setProblem(err)
		}
		i.log.Info("the tunnel's stream ended, opening a new one", "err", err, "in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(pause*2, redialMax)
	}
}

// serve runs one stream and ends it when the cluster falls silent on it.
func (i *Interface) serve(ctx context.Context, rw io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	opened := time.Now()
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				i.mu.Lock()
				last := i.last
				i.mu.Unlock()
				if time.Since(opened) > deadAfter && time.Since(last) > deadAfter {
					cancel(errSilent)
					return
				}
			}
		}
	})
	err := i.bind.serve(ctx, rw, func() { watch.Go(func() { i.greet(ctx, opened) }) })
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		err = errSilent
	}
	cancel(nil)
	watch.Wait()
	return err
}

// greet starts a handshake on a new stream, and again after a growing pause while nothing is heard: the hub may learn of
// this laptop a moment later than the laptop of the hub, and WireGuard alone would wait 5 s before it tries again.
func (i *Interface) greet(ctx context.Context, opened time.Time) {
	for pause := 250 * time.Millisecond; ; pause *= 2 {
		i.mu.Lock()
		heard := i.last.After(opened)
		i.mu.Unlock()
		if heard {
			return
		}
		if peer := i.device.LookupPeer(device.NoisePublicKey(i.peer)); peer != nil {
			peer.ExpireCurrentKeypairs()
			if err := peer.SendHandshakeInitiation(false); err != nil {
				i.log.Debug("starting a handshake failed", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
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
		received := parsePeers(state)[i.peer.hex()].received
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
