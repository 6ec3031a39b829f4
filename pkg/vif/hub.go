package vif

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/detour-dev/detour/pkg/vif/netstack"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

const (
	// StreamMTU is the VIF's MTU over a stream transport, in bytes. A stream has no limit of its
	// own; the measurements behind the figure are in docs/design/performance-log.md.
	StreamMTU = 16000
	// keepalive is how often each end sends when it has nothing to say, in seconds. Liveness is
	// built on it.
	keepalive = 1
	// statsInterval is how often WireGuard's counters are read.
	statsInterval = 250 * time.Millisecond
	// streamGrace is how long a peer whose stream has closed still counts as connected: the time
	// for a reconnect.
	streamGrace = 1500 * time.Millisecond
)

// HubConfig describes the cluster's end.
type HubConfig struct {
	PrivateKey wgkey.Key
	// Addresses are the hub's own on the VIF; it dials laptops from them.
	Addresses []netip.Addr
	// MTU is StreamMTU when 0.
	MTU int
	// Log may be nil.
	Log *slog.Logger
	// Allow reports whether a laptop may reach a destination. It is required, and is called from
	// many goroutines.
	Allow func(netip.Addr) bool
	// UDPPort is a port that takes datagrams too; 0 is for none.
	UDPPort uint16
	// MaxUDPFlows is how many flows of datagrams a laptop may have; 0 is for the default.
	MaxUDPFlows int
}

// Peer is a laptop that may connect.
type Peer struct {
	PublicKey wgkey.Key
	// Addresses are the laptop's on the VIF. It can use no others.
	Addresses []netip.Addr
}

// Hub is the cluster's end of every laptop's VIF: WireGuard over streams and datagrams, and a
// network stack that ends the laptops' flows and dials their destinations. Start it with NewHub.
type Hub struct {
	log     *slog.Logger
	paths   *transport.Responder
	stack   *netstack.Stack
	device  *device.Device
	cancel  context.CancelFunc // ends watch
	stopped chan struct{}      // closed when watch has ended

	// mu guards the fields below. It is taken before the locks of paths.
	mu     sync.Mutex
	peers  map[wgkey.Key]*peerState
	byAddr map[netip.Addr]*peerState
}

// peerState is what the hub knows of one laptop.
type peerState struct {
	Peer
	received     uint64    // bytes, WireGuard's counter
	lastReceived time.Time // when received last grew
	streamClosed time.Time // when its stream was found closed; zero while it is open
}

// NewHub starts a hub without peers. The caller owns it and calls Close, which frees all of it.
// After an error there is nothing to close.
func NewHub(c HubConfig) (*Hub, error) {
	if c.MTU == 0 {
		c.MTU = StreamMTU
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Allow == nil {
		return nil, errors.New("HubConfig.Allow is missing")
	}
	log := c.Log.With("component", component)
	h := &Hub{
		log:     log,
		paths:   transport.NewResponder(c.PrivateKey, log),
		stopped: make(chan struct{}),
		peers:   map[wgkey.Key]*peerState{},
		byAddr:  map[netip.Addr]*peerState{},
	}
	var err error
	h.stack, err = netstack.New(netstack.Config{
		Addresses: c.Addresses,
		MTU:       c.MTU,
		// The hub serves nothing on its own addresses: it refuses a laptop that dials them at once,
		// which RTT relies on.
		Allow:        func(a netip.Addr) bool { return !slices.Contains(c.Addresses, a) && c.Allow(a) },
		TakesLarge:   h.takesLarge,
		Dialer:       netstack.HubDialer(),
		DialAttempts: netstack.HubDialAttempts,
		MaxUDPFlows:  c.MaxUDPFlows,
		Log:          log,
	})
	if err != nil {
		return nil, err
	}
	h.device = device.NewDevice(classify(h.stack, h.paths.DisableExpress, log), h.paths.Bind(), wireguardLog(c.Log))
	if err := h.start(c); err != nil {
		h.stack.Stop()
		h.device.Close()
		h.paths.Close()
		h.stack.Wait()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	// Close waits for it, by stopped.
	go h.watch(ctx)
	return h, nil
}

func (h *Hub) start(c HubConfig) error {
	if err := h.device.IpcSet("private_key=" + c.PrivateKey.Hex() + "\n"); err != nil {
		return fmt.Errorf("set the hub's key: %w", err)
	}
	if c.UDPPort != 0 {
		if err := h.paths.ListenUDP(c.UDPPort); err != nil {
			return err
		}
	}
	if err := h.device.Up(); err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	return nil
}

// SetPeers makes peers the whole set of laptops. It resets the flows of those that are no longer in
// the set. After an error the former set is in force.
func (h *Hub) SetPeers(peers []Peer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := make(map[wgkey.Key]Peer, len(peers))
	for _, p := range peers {
		now[p.PublicKey] = p
	}
	conf := h.changesLocked(now)
	if conf == "" {
		return nil
	}
	if err := h.device.IpcSet(conf); err != nil {
		return fmt.Errorf("set the peers: %w", err)
	}
	var gone []netip.Addr
	keys := make([]wgkey.Key, 0, len(now))
	for key, old := range h.peers {
		if _, ok := now[key]; !ok {
			gone = append(gone, old.Addresses...)
			delete(h.peers, key)
		}
	}
	for key, p := range now {
		keys = append(keys, key)
		if old, ok := h.peers[key]; ok {
			old.Peer = p
			continue
		}
		h.peers[key] = &peerState{Peer: p}
	}
	h.paths.SetLaptops(keys)
	clear(h.byAddr)
	for _, p := range h.peers {
		for _, a := range p.Addresses {
			h.byAddr[a] = p
		}
	}
	for _, a := range gone {
		h.stack.ResetFlows(a)
		h.stack.ResetDialed(a)
	}
	return nil
}

// changesLocked is WireGuard's configuration that leads from the peers of before to these; empty
// when nothing changes.
func (h *Hub) changesLocked(peers map[wgkey.Key]Peer) string {
	var conf strings.Builder
	for key, p := range peers {
		if old, ok := h.peers[key]; ok && slices.Equal(old.Addresses, p.Addresses) {
			continue
		}
		fmt.Fprintf(&conf, "public_key=%s\npersistent_keepalive_interval=%d\nreplace_allowed_ips=true\n",
			key.Hex(), keepalive)
		for _, a := range p.Addresses {
			fmt.Fprintf(&conf, "allowed_ip=%s\n", netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for key := range h.peers {
		if _, ok := peers[key]; !ok {
			fmt.Fprintf(&conf, "public_key=%s\nremove=true\n", key.Hex())
		}
	}
	return conf.String()
}

// takesLarge reports whether the laptop with an address takes large packets.
func (h *Hub) takesLarge(a netip.Addr) bool {
	h.mu.Lock()
	p := h.byAddr[a]
	h.mu.Unlock()
	return p != nil && h.paths.TakesLarge(p.PublicKey)
}

// ServeStream carries WireGuard's messages over rw until it ends or ctx does. It closes rw. Whoever
// opened the stream has some seconds to prove that it is a laptop.
func (h *Hub) ServeStream(ctx context.Context, rw io.ReadWriteCloser) error {
	return h.paths.ServeStream(ctx, rw)
}

// Dial opens a TCP connection to a laptop. The connection has CloseWrite and Abort, which sends a
// RST.
func (h *Hub) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return h.stack.Dial(ctx, to)
}

// ResetRelayed resets the connections that were dialled to a laptop, because their clients in the
// cluster wait for its answers. The laptop's own flows stay for when it comes back.
func (h *Hub) ResetRelayed(k wgkey.Key) {
	h.mu.Lock()
	var addresses []netip.Addr
	if p, ok := h.peers[k]; ok {
		addresses = p.Addresses
	}
	h.mu.Unlock()
	for _, a := range addresses {
		h.stack.ResetDialed(a)
	}
}

// Close ends everything and waits for it. Streams that are served end with their context.
func (h *Hub) Close() error {
	h.cancel()
	h.stack.Stop()
	h.device.Close()
	h.paths.Close()
	h.stack.Wait()
	<-h.stopped
	return nil
}

func wireguardLog(log *slog.Logger) *device.Logger {
	log = log.With("component", "wireguard")
	debug := func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...)) }
	// Its errors are mostly sends to a peer without a stream, which is an everyday state here.
	return &device.Logger{Verbosef: debug, Errorf: debug}
}
