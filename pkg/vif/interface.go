package vif

import (
	"context"
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

	"github.com/detour-dev/detour/pkg/vif/packet"
	"github.com/detour-dev/detour/pkg/vif/remap"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/tundev"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// UpgradeProtocol names a stream of WireGuard messages in the Upgrade header of HTTP/1.1.
const UpgradeProtocol = "detour-wireguard"

// component is in the log lines of both ends.
const component = "vif"

// Stream carries WireGuard's messages until a direct path is found, and when there is none.
type Stream struct {
	io.ReadWriteCloser
	// Transport is the name of the kind of stream, for people.
	Transport string
}

// Config describes the laptop's end.
type Config struct {
	PrivateKey, PeerKey wgkey.Key
	// Addresses are the laptop's on the VIF, at most one of each IP family.
	Addresses []netip.Addr
	// Routes are the networks behind the VIF, as the laptop sees them.
	Routes []netip.Prefix
	// Remap are networks of the cluster that the laptop sees at other addresses.
	Remap remap.Table
	// Name of the interface. The default, "detour%d", lets the kernel number it.
	Name string
	// MTU is StreamMTU when 0.
	MTU int
	// InboundPort is the one TCP port of Addresses that the cluster may connect to; 0 is for none.
	InboundPort uint16
	// Dial opens the stream that carries WireGuard. It is called again, without end, when the
	// stream ends, and a second time beside it for the express stream. It is required.
	Dial func(context.Context) (Stream, error)
	// OpenTUN makes the network interface; nil makes it in the network of this process. Dial uses
	// the network of this process in any case.
	OpenTUN tundev.OpenFunc
	// Log may be nil.
	Log *slog.Logger
}

// Interface is the laptop's end of the VIF. Make it with Up.
type Interface struct {
	log      *slog.Logger
	name     string
	peer     wgkey.Key
	paths    *transport.PathSelector
	firewall *tundev.Firewall
	remapper *tundev.Remapper
	device   *device.Device
	host     tundev.HostInterface

	cancel    context.CancelFunc
	done      sync.WaitGroup
	connected chan struct{} // closed at the first authentic packet

	// mu guards the fields below.
	mu           sync.Mutex
	received     uint64    // bytes, WireGuard's counter
	lastReceived time.Time // when received last grew
	problem      error     // why the last dial failed
}

// Up makes the interface and starts to connect; Ready waits until it is connected. The caller owns
// the Interface and calls Close. After an error, that of a context which has ended too, there is
// nothing to close. The context bounds only the call.
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
	if err := i.configure(ctx, c); err != nil {
		_ = i.Close()
		return nil, err
	}
	return i, nil
}

// start puts WireGuard on a TUN and begins to dial. After an error the caller closes the TUN.
func start(c Config, t tun.Device, host tundev.HostInterface) (*Interface, error) {
	name, err := t.Name()
	if err != nil {
		return nil, fmt.Errorf("ask for the interface's name: %w", err)
	}
	var setLarge func(bool)
	if o, ok := t.(tundev.LargePackets); ok {
		setLarge = o.SetLarge
	}
	log := c.Log.With("component", component)
	paths, err := transport.NewPathSelector(c.PrivateKey, c.PeerKey, setLarge, log)
	if err != nil {
		return nil, err
	}
	remapper := &tundev.Remapper{Device: t}
	i := &Interface{
		log:       log,
		name:      name,
		peer:      c.PeerKey,
		paths:     paths,
		firewall:  tundev.NewFirewall(remapper, c.InboundPort),
		remapper:  remapper,
		host:      host,
		connected: make(chan struct{}),
	}
	i.device = device.NewDevice(classify(i.firewall, paths.DisableExpress, log), paths.Bind(), wireguardLog(c.Log))
	var conf strings.Builder
	fmt.Fprintf(&conf, "private_key=%s\npublic_key=%s\nendpoint=%s\npersistent_keepalive_interval=%d\n",
		c.PrivateKey.Hex(), c.PeerKey.Hex(), transport.ChosenEndpoint, keepalive)
	// The one peer may send from any address: the firewall decides which packets come in, and the
	// routes decide where packets go.
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

// configure gives the interface its addresses and routes, and starts WireGuard.
func (i *Interface) configure(ctx context.Context, c Config) error {
	if err := i.host.Configure(c.Addresses, c.MTU); err != nil {
		return err
	}
	if err := i.SetRoutes(c.Routes, c.Remap); err != nil {
		return err
	}
	if err := i.device.Up(); err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	return ctx.Err()
}

// checkClassMark is replaced in tests.
var checkClassMark = packet.CheckClassMark

// classify puts a flow classifier around a TUN for the express streams. Where the WireGuard library
// does not carry the class mark there are none: all flows share one stream, and nothing else
// changes.
func classify(t tun.Device, disableExpress func(), log *slog.Logger) tun.Device {
	if err := checkClassMark(); err != nil {
		log.Error("express streams are off: bulk flows will delay all others on a stream transport", "err", err)
		disableExpress()
		return t
	}
	return tundev.NewClassifier(t)
}

// Name is the interface's name.
func (i *Interface) Name() string { return i.name }

// SetRoutes makes routes the whole set of networks behind the VIF, and table the whole set of those
// that the laptop sees at other addresses. It is for one goroutine at a time.
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

// SetDirect makes these the hub's addresses for datagrams, the preferred ones first. The Interface
// sends probes to each, and uses one that answers.
func (i *Interface) SetDirect(addresses []netip.AddrPort) { i.paths.SetDirect(addresses) }

// Path is the path that messages to the cluster take now.
func (i *Interface) Path() transport.Path { return i.paths.Path() }

// Ready waits for the first authentic packet from the cluster.
func (i *Interface) Ready(ctx context.Context) error {
	select {
	case <-i.connected:
		return nil
	case <-ctx.Done():
		if err := i.Problem(); err != nil {
			return fmt.Errorf("the tunnel did not come up: %w", err)
		}
		return fmt.Errorf("the tunnel did not come up: no answer from the traffic-manager: %w", ctx.Err())
	}
}

// Alive reports whether an authentic packet came from the cluster within the last seconds
// (deadAfter).
func (i *Interface) Alive() bool { return time.Since(i.LastReceived()) < deadAfter }

// LastReceived is when the last authentic packet of the cluster came, to within a quarter of a
// second; zero if never.
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

func (i *Interface) setProblem(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.problem = err
}

// Close ends the tunnel and removes the interface with its addresses and routes. It waits for all
// that Up started.
func (i *Interface) Close() error {
	i.cancel()
	i.device.Close()
	i.done.Wait()
	return nil
}

// DialFunc connects somewhere, like net.Dialer.DialContext. It stands for the network that it dials
// from.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// RTT measures the round trip through the tunnel: the time until the hub refuses a connection to
// its own address.
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
