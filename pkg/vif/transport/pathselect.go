package transport

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// DirectUDP is the transport of datagrams that go straight to the hub.
const DirectUDP = "direct-udp"

const (
	selectorTick = 100 * time.Millisecond
	// pingActive is the pause between two pings on the path in use, pingSpare on a path that works,
	// and pingFirst where an answer would change something. Where no answer comes the pause grows
	// to pingRare.
	pingActive = 500 * time.Millisecond
	pingSpare  = 5 * time.Second
	pingFirst  = 250 * time.Millisecond
	pingRare   = 10 * time.Second
	// silentAfter is how long after an unanswered ping a direct path is left.
	silentAfter = 1500 * time.Millisecond
	// A direct path is used after pongsFirst answers in a row. One that was left once needs
	// pongsAgain.
	pongsFirst, pongsAgain = 2, 10
	// renewAfter is how long after the loss of all direct paths their socket is replaced. A NAT or
	// a load balancer on the way may send the old socket's datagrams astray for ever.
	renewAfter = 15 * time.Second
)

// Path is the path that a laptop's messages take now.
type Path struct {
	// Transport is DirectUDP or the name that Config.Dial gave its stream; empty when there is no
	// path.
	Transport string
	// Address is where datagrams go; empty for a stream.
	Address string
	Since   time.Time
	RTT     time.Duration // of the last probe; 0 before the first answer
}

// PathSelector is the laptop's end of all paths. It sends probes on each path to the hub, and
// chooses the best that works: a direct one, else a stream. Make it with NewPathSelector, give its
// Bind to WireGuard, and call Run.
type PathSelector struct {
	log    *slog.Logger
	prober *Prober
	// pathChanged receives when messages begin to take another path, and hubRestarted when another
	// process answers as the hub.
	pathChanged, hubRestarted chan struct{}

	bind  *bind
	large largePackets
	// noExpress is set before Run.
	noExpress bool
	// active is the path in use. It is written with mu held and read without.
	active atomic.Pointer[path]

	// mu guards the fields below.
	mu       sync.Mutex
	paths    []*path // the preferred ones first
	pings    map[uint64]pendingPing
	lastPing uint64    // the number of the last ping
	instance uint64    // the hub's process that answered last
	since    time.Time // when the active path became active
	direct   directPaths
}

// largePackets is whether the laptop's interface may send large packets.
type largePackets struct {
	// set tells the interface; nil when it makes none.
	set func(bool)
	// allowed is set while no network is remapped: remap cannot complete checksums that are only
	// begun.
	allowed atomic.Bool
}

// directPaths is what the direct paths have in common.
type directPaths struct {
	targets      []netip.AddrPort // from SetDirect
	socket       *udpSocket
	reassemblers map[netip.AddrPort]*reassembler
	// lost is when the last direct path that worked was lost; zero while one works, and before the
	// first.
	lost time.Time
}

// path is one path and what is known about it.
type path struct {
	Wire
	transport       string
	address         netip.AddrPort // of a direct path
	rtt             time.Duration
	pongs           int       // in a row
	pongsNeeded     int       // pongs until the path is used
	unansweredSince time.Time // when the first unanswered ping was sent; zero for none
	nextPing        time.Time // when to send the next ping
	pause           time.Duration
	knowsExpress    bool        // the hub knows express streams
	parent          *StreamWire // set for an express stream, which is no path of its own
}

func (p *path) direct() bool { return p.address.IsValid() }
func (p *path) works() bool  { return !p.direct() || p.pongs >= p.pongsNeeded }

// NewPathSelector makes a selector for the laptop with a private key, and the hub with a public
// key. setLarge tells the interface whether it may send large packets; nil when the interface makes
// none. log is required. There is nothing to close: Run frees what it opens.
func NewPathSelector(private, hub wgkey.Key, setLarge func(bool), log *slog.Logger) (*PathSelector, error) {
	p, err := NewProber(private, hub, private.Public())
	if err != nil {
		return nil, err
	}
	return newSelector(p, setLarge, log), nil
}

func newSelector(p *Prober, setLarge func(bool), log *slog.Logger) *PathSelector {
	ps := &PathSelector{
		log:          log,
		prober:       p,
		pathChanged:  make(chan struct{}, 1),
		hubRestarted: make(chan struct{}, 1),
		large:        largePackets{set: setLarge},
		pings:        map[uint64]pendingPing{},
		direct:       directPaths{reassemblers: map[netip.AddrPort]*reassembler{}},
	}
	ps.bind = newBind(ps.Current, ps.handlePong)
	return ps
}

// Bind is what WireGuard sends and receives with.
func (ps *PathSelector) Bind() conn.Bind { return ps.bind }

// PathChanged receives when messages begin to take another path. One value may stand for several
// changes.
func (ps *PathSelector) PathChanged() <-chan struct{} { return ps.pathChanged }

// HubRestarted receives when another process answers as the hub, and for the first process too.
func (ps *PathSelector) HubRestarted() <-chan struct{} { return ps.hubRestarted }

// AllowLarge sets whether large packets may be sent at all. Remapped networks rule them out: remap
// cannot complete checksums that are only begun.
func (ps *PathSelector) AllowLarge(allowed bool) {
	if was := ps.large.allowed.Swap(allowed); was && !allowed && ps.large.set != nil {
		ps.large.set(false)
	}
}

// DisableExpress rules express streams out. Call it before Run.
func (ps *PathSelector) DisableExpress() { ps.noExpress = true }

// Serve carries messages over rw until it ends or ctx does, and closes rw. It calls opened when
// messages can be sent.
func (ps *PathSelector) Serve(ctx context.Context, rw io.ReadWriteCloser, opened func(*StreamWire)) error {
	return ps.bind.serve(ctx, rw, opened)
}

// Current is the wire of the next message; nil when there is no path.
func (ps *PathSelector) Current() Wire {
	if p := ps.active.Load(); p != nil {
		return p.Wire
	}
	return nil
}

func (ps *PathSelector) Path() Path {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.active.Load()
	if p == nil {
		return Path{}
	}
	now := Path{Transport: p.transport, Since: ps.since, RTT: p.rtt}
	if p.direct() {
		now.Address = p.address.String()
	}
	return now
}

// AddStream adds a stream of a transport until remove is called.
func (ps *PathSelector) AddStream(s *StreamWire, transport string) (remove func()) {
	return ps.add(&path{Wire: s, transport: transport})
}

// AddExpress adds a stream as the express stream beside another one, until remove is called.
func (ps *PathSelector) AddExpress(s, parent *StreamWire) (remove func()) {
	removePath := ps.add(&path{Wire: s, parent: parent})
	return func() { removePath(); parent.express.CompareAndSwap(s, nil) }
}

// add adds a path until remove is called.
func (ps *PathSelector) add(p *path) (remove func()) {
	ps.mu.Lock()
	ps.paths = append(ps.paths, p)
	ps.mu.Unlock()
	ps.tick(time.Now())
	return func() {
		ps.mu.Lock()
		ps.paths = slices.DeleteFunc(ps.paths, func(o *path) bool { return o == p })
		ps.mu.Unlock()
		ps.selectBest(time.Now())
	}
}

// Unanswered is for how long a stream has not answered a ping.
func (ps *PathSelector) Unanswered(s *StreamWire) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.paths {
		if p.Wire == Wire(s) && !p.unansweredSince.IsZero() {
			return time.Since(p.unansweredSince)
		}
	}
	return 0
}

// SetDirect makes these the hub's addresses for datagrams, the preferred ones first.
func (ps *PathSelector) SetDirect(targets []netip.AddrPort) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.direct.targets = slices.Clone(targets)
}

// Run sends probes until ctx ends.
func (ps *PathSelector) Run(ctx context.Context) {
	tick := time.NewTicker(selectorTick)
	defer tick.Stop()
	defer func() { ps.openSocket(nil) }()
	for {
		ps.refreshDirect(time.Now())
		ps.tick(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// refreshDirect brings the direct paths in line with SetDirect, and replaces their socket when it
// may have gone bad.
func (ps *PathSelector) refreshDirect(now time.Time) {
	ps.mu.Lock()
	var have []netip.AddrPort
	for _, p := range ps.paths {
		if p.direct() {
			have = append(have, p.address)
		}
	}
	targets, same := ps.direct.targets, slices.Equal(have, ps.direct.targets)
	renew := !ps.direct.lost.IsZero() && now.Sub(ps.direct.lost) > renewAfter
	ps.mu.Unlock()
	if same && !renew {
		return
	}
	if renew {
		ps.log.Debug("replacing the socket of the direct paths")
	}
	ps.openSocket(targets)
}

// openSocket replaces the socket and the direct paths; without targets there are none.
func (ps *PathSelector) openSocket(targets []netip.AddrPort) {
	ps.mu.Lock()
	old := ps.direct.socket
	ps.direct.socket, ps.direct.lost = nil, time.Time{}
	ps.paths = slices.DeleteFunc(ps.paths, (*path).direct)
	ps.direct.reassemblers = map[netip.AddrPort]*reassembler{}
	ps.mu.Unlock()
	ps.selectBest(time.Now())
	if old != nil {
		ps.bind.useSocket(nil)
		old.close()
	}
	if len(targets) == 0 {
		return
	}
	socket, err := listenUDP(0, ps.reassemblerOf)
	if err != nil {
		ps.log.Warn("no direct path: opening a UDP socket failed", "err", err)
		ps.SetDirect(nil)
		return
	}
	ps.mu.Lock()
	var direct []*path
	for _, t := range targets {
		r := &reassembler{}
		p := &path{
			Wire:        &datagramWire{to: t, socket: socket, reassembler: r},
			transport:   DirectUDP,
			address:     t,
			pongsNeeded: pongsFirst,
		}
		direct = append(direct, p)
		ps.direct.reassemblers[t] = r
	}
	ps.direct.socket = socket
	ps.paths = append(direct, ps.paths...)
	ps.mu.Unlock()
	ps.bind.useSocket(socket)
}

func (ps *PathSelector) reassemblerOf(from netip.AddrPort) *reassembler {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.direct.reassemblers[from]
}

// selectBest makes the best path that works the active one.
func (ps *PathSelector) selectBest(now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	old := ps.active.Load()
	best := ps.bestLocked(old)
	works := best != nil && best.direct()
	switch {
	case works:
		ps.direct.lost = time.Time{}
	case old != nil && old.direct():
		ps.direct.lost = now
	}
	if best == old {
		return
	}
	if old != nil && old.direct() {
		// Other addresses of the hub may still work.
		for _, p := range ps.paths {
			if p.direct() {
				p.nextPing, p.pause = now, pingFirst
			}
		}
	}
	ps.active.Store(best)
	ps.since = now
	if best != nil {
		best.nextPing = now // from now on it gets pings more often
	}
	if best == nil {
		ps.log.Info("there is no path to the cluster")
		return
	}
	ps.log.Info(
		"the path to the cluster changed",
		"path",
		best.transport,
		"address",
		best.DstToString(),
		"duration",
		best.rtt,
	)
	notify(ps.pathChanged)
}

// bestLocked returns the best path that works; old is the active one.
func (ps *PathSelector) bestLocked(old *path) *path {
	var best *path
	for _, p := range ps.paths {
		if p.parent != nil || !p.works() {
			continue
		}
		// A direct path is not left for another one that is no better. Among streams the newest is
		// the one that is alive.
		if best == nil || p == old && p.direct() || !best.direct() {
			best = p
		}
	}
	return best
}

// notify leaves a value in a channel, unless one is there.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
