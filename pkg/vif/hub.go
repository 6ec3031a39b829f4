package vif

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/replay"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// StreamMTU is the VIF's MTU over a stream transport, in bytes. A stream has no limit of its own; docs/performance.md has
	// the measurements behind the figure.
	StreamMTU = 16000
	// keepalive is how often each end is heard even when nothing is to be said, in seconds. It is what liveness is built on.
	keepalive = 1
	// statsInterval is how often WireGuard's counters are read.
	statsInterval = 250 * time.Millisecond
	// streamGrace is how long a peer whose stream has closed still counts as there: the time for a reconnect.
	streamGrace = 1500 * time.Millisecond
	// A laptop's datagrams are expected from so many addresses at once, and for so long after its last probe from there.
	maxSources   = 8
	sourceMemory = time.Minute
)

// HubConfig describes the cluster's end.
type HubConfig struct {
	PrivateKey Key
	// Addresses are the hub's own on the VIF; it dials laptops from them.
	Addresses []netip.Addr
	// MTU is StreamMTU when 0.
	MTU int
	Log *slog.Logger
	// Allow says whether a laptop may reach a destination. Required.
	Allow func(netip.Addr) bool
	// UDPPort is where datagrams are taken too; 0 for nowhere.
	UDPPort uint16
}

// Peer is a laptop that may connect.
type Peer struct {
	PublicKey Key
	Addresses []netip.Addr
}

// Hub is the cluster's end of every laptop's VIF: WireGuard over streams and datagrams, and a netstack that forwards TCP and UDP.
type Hub struct {
	log     *slog.Logger
	key     Key
	bind    *pathBind
	socket  *udpSocket // nil without UDP
	tun     *netstackTUN
	device  *device.Device
	forward *forwarder
	relayed flowTable // the connections that the hub dialled
	cancel  context.CancelFunc
	stopped chan struct{}
	// instance tells this process from the one before in the answers to probes.
	instance uint64

	mu      sync.Mutex
	peers   map[Key]*peerState
	byProbe map[probeID]*peerState
	byAddr  map[netip.Addr]*peerState
	sources map[netip.AddrPort]*source
}

// source is where datagrams of a laptop come from. Only a probe that the laptop sealed makes one.
type source struct {
	peer   *peerState
	seen   time.Time
	joiner joiner
}

type peerState struct {
	Peer
	received     uint64 // bytes, WireGuard's counter
	last         time.Time
	streamClosed time.Time // when its stream was found closed; zero while open
	stream       string    // the last that it sent a probe on, lanes apart
	lanePinged   time.Time // when its last probe on a lane came
	pinged       time.Time // when its last probe came
	takes        byte      // what it says in its probes
	prober       *prober   // nil when its key is none
	pings        replay.Filter
}

// NewHub starts a hub. Close frees all of it.
func NewHub(c HubConfig) (*Hub, error) {
	if c.MTU == 0 {
		c.MTU = StreamMTU
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Allow == nil {
		return nil, errors.New("a hub needs to be told which destinations are allowed")
	}
	// The hub serves nothing on its own addresses: a laptop that dials them is refused at once, which RTT makes use of.
	allow := func(a netip.Addr) bool { return !slices.Contains(c.Addresses, a) && c.Allow(a) }
	ctx, cancel := context.WithCancel(context.Background())
	h := &Hub{
		log:      c.Log,
		key:      c.PrivateKey,
		forward:  &forwarder{ctx: ctx, allow: allow, dialer: clusterDialer(), attempts: dialAttempts},
		cancel:   cancel,
		stopped:  make(chan struct{}),
		instance: rand.Uint64(),
		peers:    map[Key]*peerState{},
		byProbe:  map[probeID]*peerState{},
		byAddr:   map[netip.Addr]*peerState{},
		sources:  map[netip.AddrPort]*source{},
	}
	stack, err := newNetstack(c.Addresses, c.MTU, h.takesLarge)
	if err != nil {
		cancel()
		return nil, err
	}
	h.tun = stack
	h.bind = newPathBind(nil, h.answer)
	h.device = device.NewDevice(newSortedTUN(stack), h.bind, wireguardLog(c.Log))
	h.forward.attach(stack.stack)
	attachPinger(stack.stack, h.forward, c.Addresses, c.Log)
	if err := h.device.IpcSet("private_key=" + c.PrivateKey.hex() + "\n"); err != nil {
		cancel()
		h.device.Close()
		return nil, fmt.Errorf("set the hub's key: %w", err)
	}
	if c.UDPPort != 0 {
		if h.socket, err = listenUDP(c.UDPPort, h.joinerOf); err != nil {
			cancel()
			h.device.Close()
			return nil, err
		}
		h.bind.useSocket(h.socket)
	}
	if err := h.device.Up(); err != nil {
		cancel()
		h.device.Close()
		if h.socket != nil {
			h.socket.close()
		}
		return nil, fmt.Errorf("start WireGuard: %w", err)
	}
	go h.watch(ctx)
	return h, nil
}

// SetPeers makes peers the whole set of laptops. The flows of those no longer in it are reset.
func (h *Hub) SetPeers(peers []Peer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	wanted := make(map[Key]Peer, len(peers))
	var conf strings.Builder
	for _, p := range peers {
		wanted[p.PublicKey] = p
		if old, ok := h.peers[p.PublicKey]; ok && slices.Equal(old.Addresses, p.Addresses) {
			continue
		}
		fmt.Fprintf(&conf, "public_key=%s\npersistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", p.PublicKey.hex(), keepalive)
		for _, a := range p.Addresses {
			fmt.Fprintf(&conf, "allowed_ip=%s\n", netip.PrefixFrom(a, a.BitLen()))
		}
	}
	var gone []netip.Addr
	for key, old := range h.peers {
		if _, ok := wanted[key]; !ok {
			fmt.Fprintf(&conf, "public_key=%s\nremove=true\n", key.hex())
			gone = append(gone, old.Addresses...)
		}
	}
	if conf.Len() == 0 {
		return nil
	}
	if err := h.device.IpcSet(conf.String()); err != nil {
		return fmt.Errorf("set the peers: %w", err)
	}
	for key, old := range h.peers {
		if _, ok := wanted[key]; !ok {
			delete(h.peers, key)
			delete(h.byProbe, probeIDOf(key))
			maps.DeleteFunc(h.sources, func(_ netip.AddrPort, s *source) bool { return s.peer == old })
		}
	}
	for key, p := range wanted {
		if old, ok := h.peers[key]; ok {
			old.Peer = p
			continue
		}
		state := &peerState{Peer: p}
		var err error
		if state.prober, err = newProber(h.key, key, key); err != nil {
			h.log.Warn("a laptop's key is none that probes can be made of", "err", err)
		} else {
			h.byProbe[state.prober.id] = state
		}
		h.peers[key] = state
	}
	clear(h.byAddr)
	for _, p := range h.peers {
		for _, a := range p.Addresses {
			h.byAddr[a] = p
		}
	}
	for _, a := range gone {
		h.forward.flows.reset(a)
		h.relayed.reset(a)
	}
	return nil
}

// answer takes a probe. One that is not from a laptop, or has come before, gets no answer: a stranger learns nothing and nobody can
// have this hub send anything to others.
func (h *Hub) answer(from wire, m []byte) {
	id, ok := probeOf(pingType, m)
	if !ok {
		return
	}
	h.mu.Lock()
	p := h.byProbe[id]
	h.mu.Unlock()
	if p == nil {
		return
	}
	says, ok := p.prober.open(pingType, m)
	if !ok {
		return
	}
	takes := byte(takesLarge | takesLanes)
	h.mu.Lock()
	if ok = p.pings.ValidateCounter(says.number, math.MaxUint64); ok {
		p.pinged, p.takes = time.Now(), says.takes
		switch w := from.(type) {
		case *udpWire:
			join := h.know(w.to, p)
			join.spare.Store(says.takes&takesSpare != 0)
			if join.loses(p.pinged) {
				takes = takesSpare
			}
		case *stream:
			h.bind.strangers.prove(w)
			if says.takes&onLane == 0 {
				p.stream = w.id
			} else if !p.joinLane(w, h.bind.stream(p.stream)) {
				takes &^= takesLanes
			}
		}
	}
	h.mu.Unlock()
	if !ok {
		return
	}
	if err := from.send([][]byte{p.prober.seal(pongType, probe{number: says.number, instance: h.instance, takes: takes}, len(m))}); err != nil {
		h.log.Debug("a probe was not answered", "to", from.DstToString(), "err", err)
	}
}

// takesLarge says whether the laptop with an address takes large packets.
func (h *Hub) takesLarge(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.byAddr[a]
	return p != nil && p.takes&takesLarge != 0
}

// know remembers where datagrams of a laptop come from, the latest few; h.mu is held.
func (h *Hub) know(from netip.AddrPort, p *peerState) *joiner {
	now := time.Now()
	if s, ok := h.sources[from]; ok && s.peer == p {
		s.seen = now
		return &s.joiner
	}
	var oldest netip.AddrPort
	count := 0
	for a, s := range h.sources {
		if s.peer != p {
			continue
		}
		if now.Sub(s.seen) > sourceMemory {
			delete(h.sources, a)
			continue
		}
		if count++; !oldest.IsValid() || s.seen.Before(h.sources[oldest].seen) {
			oldest = a
		}
	}
	if count >= maxSources {
		delete(h.sources, oldest)
	}
	s := &source{peer: p, seen: now}
	h.sources[from] = s
	return &s.joiner
}

func (h *Hub) joinerOf(from netip.AddrPort) *joiner {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.sources[from]; ok {
		return &s.joiner
	}
	return nil
}

// ServeStream carries WireGuard messages over rw until it ends or ctx does. It closes rw.
func (h *Hub) ServeStream(ctx context.Context, rw io.ReadWriteCloser) error {
	return h.bind.serve(ctx, rw, nil)
}

// Dial opens a TCP connection to a laptop. The connection has CloseWrite and Abort, which sends a RST.
func (h *Hub) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var queue waiter.Queue
	endpoint, failed := h.tun.stack.NewEndpoint(tcp.ProtocolNumber, networkOf(to.Addr()), &queue)
	if failed != nil {
		return nil, fmt.Errorf("dial the laptop at %s: %s", to, failed)
	}
	ready, opened := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&ready)
	defer queue.EventUnregister(&ready)
	failed = endpoint.Connect(tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(to.Addr().AsSlice()), Port: to.Port()})
	if _, started := failed.(*tcpip.ErrConnectStarted); started {
		select {
		case <-opened:
			failed = endpoint.LastError()
		case <-ctx.Done():
			endpoint.Abort()
			return nil, fmt.Errorf("dial the laptop at %s: %w", to, ctx.Err())
		}
	}
	if failed != nil {
		endpoint.Close()
		return nil, fmt.Errorf("dial the laptop at %s: %s", to, failed)
	}
	// No keep-alive: liveness is WireGuard's.
	endpoint.SocketOptions().SetDelayOption(false)
	c := &laptopConn{tcpFlow: tcpFlow{TCPConn: gonet.NewTCPConn(&queue, endpoint), endpoint: endpoint}}
	c.remove = h.relayed.add(to.Addr(), c.Abort)
	return c, nil
}

// laptopConn is a dialled connection that the hub can reset with the laptop's other flows.
type laptopConn struct {
	tcpFlow
	remove func()
}

func (c *laptopConn) Close() error {
	c.remove()
	return c.TCPConn.Close()
}

// ResetRelayed resets the connections that were dialled to a laptop: somebody in the cluster waits for its answers. The laptop's own
// flows stay, for when it comes back.
func (h *Hub) ResetRelayed(k Key) {
	h.mu.Lock()
	var addresses []netip.Addr
	if p, ok := h.peers[k]; ok {
		addresses = p.Addresses
	}
	h.mu.Unlock()
	for _, a := range addresses {
		h.relayed.reset(a)
	}
}

// Close ends everything and waits for it.
func (h *Hub) Close() error {
	h.cancel()
	h.forward.flows.reset(netip.Addr{})
	h.relayed.reset(netip.Addr{})
	h.device.Close()
	if h.socket != nil {
		h.socket.close()
	}
	h.forward.wg.Wait()
	h.tun.stack.Wait()
	<-h.stopped
	return nil
}

func wireguardLog(log *slog.Logger) *device.Logger {
	return &device.Logger{
		Verbosef: func(format string, args ...any) { log.Debug("wireguard: " + fmt.Sprintf(format, args...)) },
		// Its errors are mostly sends to a peer without a stream, which is an everyday state here.
		Errorf: func(format string, args ...any) { log.Debug("wireguard: " + fmt.Sprintf(format, args...)) },
	}
}
