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

// DirectUDP is the transport of datagrams that go to the hub without anything between.
const DirectUDP = "direct-udp"

const (
	selectorTick = 100 * time.Millisecond
	// probeActive is the time between two pings on the path in use, probeSpare on one that could be, and probeFirst where an answer
	// would change something. Where none comes the time grows up to probeRare.
	pingActive = 500 * time.Millisecond
	pingSpare  = 5 * time.Second
	pingFirst  = 250 * time.Millisecond
	pingRare   = 10 * time.Second
	// silentAfter is how long after an unanswered ping a direct path is left.
	silentAfter = 1500 * time.Millisecond
	// A direct path is taken after so many answers in a row; one that had been left must prove itself for longer.
	pongsFirst, pongsAgain = 2, 10
	// renewAfter is how long after the loss of all direct paths their socket is made anew: what on the way remembers the old one (a NAT,
	// a load balancer) may lead it astray for ever.
	renewAfter = 15 * time.Second
)

// Path is the way that a laptop's messages take now.
type Path struct {
	// Transport is DirectUDP or what Config.Dial called its stream; empty when there is no way.
	Transport string
	// Address is where datagrams go.
	Address string
	Since   time.Time
	RTT     time.Duration // of the last probe; 0 when not measured yet
}

// ladder holds all ways from a laptop to the hub, probes each, and chooses the best that works: a direct one, else the stream.
type PathSelector struct {
	log    *slog.Logger
	prober *Prober
	// moved says that messages take another way, restarted that another process answers as the hub.
	pathChanged, hubRestarted chan struct{}

	mu       sync.Mutex
	paths    []*path // the better ones first
	pings    map[uint64]pendingPing
	lastPing uint64 // of the last ping
	instance uint64 // the hub's process
	since    time.Time
	active   atomic.Pointer[path]

	// setLarge tells the interface whether it may send large packets; nil when it makes none.
	setLarge func(bool)
	// unmapped says that no network is seen elsewhere: with checksums that have only begun remap cannot do.
	largeAllowed atomic.Bool

	noExpress    bool // set before Run
	bind         *bind
	targets      []netip.AddrPort
	socket       *udpSocket
	reassemblers map[netip.AddrPort]*reassembler
	directLost   time.Time // when the last direct way that worked was lost; zero while one works, and when none ever did
}

// way is one path and what is known of it.
type path struct {
	Wire
	transport       string
	address         netip.AddrPort // of a direct one
	rtt             time.Duration
	pongs           int       // in a row
	pongsNeeded     int       // answers to be taken
	unansweredSince time.Time // since when a ping is unanswered; zero when none is
	nextPing        time.Time // when to ask again
	pause           time.Duration
	knowsExpress    bool        // of a stream: the hub knows lanes
	parent          *StreamWire // of a lane, which is no path of its own: where it belongs
}

type pendingPing struct {
	path   *path
	sentAt time.Time
}

func (w *path) direct() bool { return w.address.IsValid() }
func (w *path) works() bool  { return !w.direct() || w.pongs >= w.pongsNeeded }

// newPathSelector makes a selector for the laptop with a private key, and the hub with a public key. setLarge tells the
// interface whether it may send large packets; nil when it makes none. log is required.
func NewPathSelector(private, hub wgkey.Key, setLarge func(bool), log *slog.Logger) (*PathSelector, error) {
	p, err := NewProber(private, hub, private.Public())
	if err != nil {
		return nil, err
	}
	return newSelector(p, setLarge, log), nil
}

func newSelector(p *Prober, setLarge func(bool), log *slog.Logger) *PathSelector {
	l := &PathSelector{
		log: log, prober: p, setLarge: setLarge, pings: map[uint64]pendingPing{}, reassemblers: map[netip.AddrPort]*reassembler{},
		pathChanged: make(chan struct{}, 1), hubRestarted: make(chan struct{}, 1),
	}
	l.bind = newBind(l.Current, l.handlePong)
	return l
}

// Bind is what WireGuard sends and receives with.
func (l *PathSelector) Bind() conn.Bind { return l.bind }

// PathChanged receives when messages begin to take another path.
func (l *PathSelector) PathChanged() <-chan struct{} { return l.pathChanged }

// HubRestarted receives when another process answers as the hub, for the first one too.
func (l *PathSelector) HubRestarted() <-chan struct{} { return l.hubRestarted }

// AllowLarge says whether large packets may be sent at all. Remapped networks rule them out: remap cannot complete
// checksums that are only begun.
func (l *PathSelector) AllowLarge(allowed bool) {
	if was := l.largeAllowed.Swap(allowed); was && !allowed && l.setLarge != nil {
		l.setLarge(false)
	}
}

// DisableExpress rules express streams out. Call it before Run.
func (l *PathSelector) DisableExpress() { l.noExpress = true }

// Serve carries messages over rw until it ends or ctx does, and closes rw. It calls opened when messages can be sent.
func (l *PathSelector) Serve(ctx context.Context, rw io.ReadWriteCloser, opened func(*StreamWire)) error {
	return l.bind.serve(ctx, rw, opened)
}

// takes is what the hub may send: no large packets while pieces are lost, because all of a packet is lost with one, but spare pieces there.
func (l *PathSelector) features(w Wire, now time.Time) (takes byte) {
	if l.setLarge != nil && l.largeAllowed.Load() && !loses(l.Current(), now) {
		takes |= FeatureLarge
	}
	if loses(w, now) {
		takes |= FeatureParity
	}
	return takes
}

// loses says whether pieces were lost lately on a wire.
func loses(w Wire, now time.Time) bool {
	u, ok := w.(*datagramWire)
	return ok && u.reassembler != nil && u.reassembler.loses(now)
}

// choose is where the next message goes.
func (l *PathSelector) Current() Wire {
	if w := l.active.Load(); w != nil {
		return w.Wire
	}
	return nil
}

func (l *PathSelector) Path() Path {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.active.Load()
	if w == nil {
		return Path{}
	}
	p := Path{Transport: w.transport, Since: l.since, RTT: w.rtt}
	if w.direct() {
		p.Address = w.address.String()
	}
	return p
}

// AddStream adds a stream of a transport until remove is called.
func (l *PathSelector) AddStream(s *StreamWire, transport string) (remove func()) {
	return l.add(&path{Wire: s, transport: transport})
}

// AddExpress adds a stream as the express stream beside another one, until remove is called.
func (l *PathSelector) AddExpress(s, of *StreamWire) (remove func()) {
	removeWay := l.add(&path{Wire: s, parent: of})
	return func() { removeWay(); of.express.CompareAndSwap(s, nil) }
}

// add adds a stream or a lane until remove is called.
func (l *PathSelector) add(w *path) (remove func()) {
	l.mu.Lock()
	l.paths = append(l.paths, w)
	l.mu.Unlock()
	l.tick(time.Now())
	return func() {
		l.mu.Lock()
		l.paths = slices.DeleteFunc(l.paths, func(o *path) bool { return o == w })
		l.mu.Unlock()
		l.selectBest(time.Now())
	}
}

// silent says for how long the stream has not answered.
func (l *PathSelector) Unanswered(s *StreamWire) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.paths {
		if w.Wire == Wire(s) && !w.unansweredSince.IsZero() {
			return time.Since(w.unansweredSince)
		}
	}
	return 0
}

// setDirect makes these the hub's addresses for datagrams, the preferred ones first.
func (l *PathSelector) SetDirect(targets []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.targets = slices.Clone(targets)
}

// run probes until ctx ends.
func (l *PathSelector) Run(ctx context.Context) {
	tick := time.NewTicker(selectorTick)
	defer tick.Stop()
	defer func() { l.openSocket(nil) }()
	for {
		l.refreshDirect(time.Now())
		l.tick(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keepDirect makes the direct ways what setDirect wanted, and their socket anew when it may have gone bad.
func (l *PathSelector) refreshDirect(now time.Time) {
	l.mu.Lock()
	var have []netip.AddrPort
	for _, w := range l.paths {
		if w.direct() {
			have = append(have, w.address)
		}
	}
	targets, same := l.targets, slices.Equal(have, l.targets)
	renew := !l.directLost.IsZero() && now.Sub(l.directLost) > renewAfter
	l.mu.Unlock()
	if same && !renew {
		return
	}
	if renew {
		l.log.Debug("making the direct paths' socket anew")
	}
	l.openSocket(targets)
}

// openSocket replaces the socket and the direct ways; without targets there is none.
func (l *PathSelector) openSocket(targets []netip.AddrPort) {
	l.mu.Lock()
	old := l.socket
	l.socket, l.directLost = nil, time.Time{}
	l.paths = slices.DeleteFunc(l.paths, (*path).direct)
	l.reassemblers = map[netip.AddrPort]*reassembler{}
	l.mu.Unlock()
	l.selectBest(time.Now())
	if old != nil {
		l.bind.useSocket(nil)
		old.close()
	}
	if len(targets) == 0 {
		return
	}
	socket, err := listenUDP(0, l.reassemblerOf)
	if err != nil {
		l.log.Warn("there will be no direct path", "err", err)
		l.SetDirect(nil)
		return
	}
	l.mu.Lock()
	var direct []*path
	for _, t := range targets {
		join := &reassembler{}
		w := &path{Wire: &datagramWire{to: t, socket: socket, reassembler: join}, transport: DirectUDP, address: t, pongsNeeded: pongsFirst}
		direct = append(direct, w)
		l.reassemblers[t] = join
	}
	l.socket = socket
	l.paths = append(direct, l.paths...)
	l.mu.Unlock()
	l.bind.useSocket(socket)
}

func (l *PathSelector) reassemblerOf(from netip.AddrPort) *reassembler {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reassemblers[from]
}

// tick sends the pings that are due and draws the conclusions of those that were not answered.
func (l *PathSelector) tick(now time.Time) {
	type ping struct {
		to      Wire
		message []byte
	}
	var pings []ping
	l.mu.Lock()
	for _, w := range l.paths {
		if w.direct() && !w.unansweredSince.IsZero() && now.Sub(w.unansweredSince) > silentAfter {
			if w.works() {
				w.pongsNeeded = pongsAgain
			}
			w.pongs = 0
		}
		if w.parent != nil && !w.unansweredSince.IsZero() && now.Sub(w.unansweredSince) > silentAfter {
			l.expressSilentLocked(w)
		}
		if now.Before(w.nextPing) {
			continue
		}
		size := 0
		if w.direct() {
			size = MaxDatagram // it shows that others of that size arrive
		}
		if w.unansweredSince.IsZero() {
			w.unansweredSince, w.pause = now, pingFirst
		}
		l.lastPing++
		l.pings[l.lastPing] = pendingPing{w, now}
		takes := l.features(w.Wire, now)
		if w.parent != nil {
			takes |= FeatureOnExpress
		}
		pings = append(pings, ping{w.Wire, l.prober.Seal(PingType, Probe{Number: l.lastPing, Features: takes}, size)})
		if w.works() {
			w.nextPing = now.Add(pingActive)
		} else {
			w.nextPing = now.Add(w.pause)
			w.pause = min(w.pause*5/4, pingRare)
		}
	}
	for n, q := range l.pings {
		if now.Sub(q.sentAt) > pingRare {
			delete(l.pings, n)
		}
	}
	l.mu.Unlock()
	for _, p := range pings {
		if err := p.to.Send([][]byte{p.message}); err != nil {
			l.log.Debug("a probe was not sent", "to", p.to.DstToString(), "err", err)
		}
	}
	l.selectBest(now)
}

// answered takes a probe from the hub.
func (l *PathSelector) handlePong(_ Wire, m []byte) {
	says, ok := l.prober.Open(PongType, m)
	if !ok {
		return
	}
	now := time.Now()
	l.mu.Lock()
	q, ok := l.pings[says.Number]
	delete(l.pings, says.Number)
	if !ok {
		l.mu.Unlock()
		return
	}
	w := q.path
	w.rtt, w.unansweredSince = now.Sub(q.sentAt), time.Time{}
	w.pongs++
	if w.parent != nil {
		l.expressAnsweredLocked(w, says)
		l.mu.Unlock()
		return
	}
	w.knowsExpress = says.Features&FeatureExpress != 0
	switch {
	case !w.works():
		w.nextPing = now.Add(pingFirst)
	case w != l.active.Load():
		w.nextPing = now.Add(pingSpare)
	}
	if u, ok := w.Wire.(*datagramWire); ok {
		u.reassembler.sendParity.Store(says.Features&FeatureParity != 0)
	}
	if l.setLarge != nil && w == l.active.Load() {
		l.setLarge(says.Features&FeatureLarge != 0 && l.largeAllowed.Load())
	}
	if says.Instance != l.instance {
		l.instance = says.Instance
		notify(l.hubRestarted)
	}
	l.mu.Unlock()
	l.selectBest(now)
}

// settle makes the best way that works the active one.
func (l *PathSelector) selectBest(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.active.Load()
	var best *path
	for _, w := range l.paths {
		if w.parent != nil || !w.works() {
			continue
		}
		// A direct way is not left for another that is no better; of streams the newest is the one that is alive.
		if best == nil || w == old && w.direct() || !best.direct() {
			best = w
		}
	}
	works := best != nil && best.direct()
	switch {
	case works:
		l.directLost = time.Time{}
	case old != nil && old.direct():
		l.directLost = now
	}
	if best == old {
		return
	}
	if old != nil && old.direct() {
		// Other addresses of the hub may still work.
		for _, w := range l.paths {
			if w.direct() {
				w.nextPing, w.pause = now, pingFirst
			}
		}
	}
	l.active.Store(best)
	l.since = now
	if best != nil {
		best.nextPing = now // from now on it is watched closely
	}
	if best == nil {
		l.log.Info("there is no path to the cluster")
		return
	}
	l.log.Info("the path to the cluster", "transport", best.transport, "to", best.DstToString(), "round trip", best.rtt)
	notify(l.pathChanged)
}

// tell leaves a note in a channel; one is enough.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
