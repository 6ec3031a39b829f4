package vif

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// DirectUDP is the transport of datagrams that go to the hub without anything between.
const DirectUDP = "direct-udp"

const (
	ladderTick = 100 * time.Millisecond
	// probeActive is the time between two pings on the path in use, probeSpare on one that could be, and probeFirst where an answer
	// would change something. Where none comes the time grows up to probeRare.
	probeActive = 500 * time.Millisecond
	probeSpare  = 5 * time.Second
	probeFirst  = 250 * time.Millisecond
	probeRare   = 10 * time.Second
	// silentAfter is how long after an unanswered ping a direct path is left.
	silentAfter = 1500 * time.Millisecond
	// A direct path is taken after so many answers in a row; one that had been left must prove itself for longer.
	answersFirst, answersAgain = 2, 10
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
type ladder struct {
	log    *slog.Logger
	prober *prober
	// moved says that messages take another way, restarted that another process answers as the hub.
	moved, restarted chan struct{}

	mu       sync.Mutex
	ways     []*way // the better ones first
	asked    map[uint64]question
	number   uint64 // of the last ping
	instance uint64 // the hub's process
	since    time.Time
	active   atomic.Pointer[way]

	// setLarge says whether large packets may be sent; nil when the laptop makes none.
	setLarge func(bool)
	// unmapped says that no network is seen elsewhere: with checksums that have only begun remap cannot do.
	unmapped atomic.Bool

	bind    *pathBind
	targets []netip.AddrPort
	socket  *udpSocket
	joiners map[netip.AddrPort]*joiner
	lost    time.Time // when the last direct way that worked was lost; zero while one works, and when none ever did
}

// way is one path and what is known of it.
type way struct {
	wire
	transport string
	address   netip.AddrPort // of a direct one
	rtt       time.Duration
	answers   int       // in a row
	need      int       // answers to be taken
	waiting   time.Time // since when a ping is unanswered; zero when none is
	next      time.Time // when to ask again
	pause     time.Duration
	lanes     bool    // of a stream: the hub knows lanes
	of        *stream // of a lane, which is no path of its own: where it belongs
}

type question struct {
	way *way
	at  time.Time
}

func (w *way) direct() bool { return w.address.IsValid() }
func (w *way) works() bool  { return !w.direct() || w.answers >= w.need }

func newLadder(p *prober, log *slog.Logger) *ladder {
	l := &ladder{
		log: log, prober: p, asked: map[uint64]question{}, joiners: map[netip.AddrPort]*joiner{},
		moved: make(chan struct{}, 1), restarted: make(chan struct{}, 1),
	}
	l.bind = newPathBind(l.choose, l.answered)
	return l
}

// takes is what the hub may send: no large packets while pieces are lost, because all of a packet is lost with one, but spare pieces there.
func (l *ladder) takes(w wire, now time.Time) (takes byte) {
	if l.setLarge != nil && l.unmapped.Load() && !loses(l.choose(), now) {
		takes |= takesLarge
	}
	if loses(w, now) {
		takes |= takesSpare
	}
	return takes
}

// loses says whether pieces were lost lately on a wire.
func loses(w wire, now time.Time) bool {
	u, ok := w.(*udpWire)
	return ok && u.join != nil && u.join.loses(now)
}

// choose is where the next message goes.
func (l *ladder) choose() wire {
	if w := l.active.Load(); w != nil {
		return w.wire
	}
	return nil
}

func (l *ladder) path() Path {
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

// add adds a stream or a lane until remove is called.
func (l *ladder) add(w *way) (remove func()) {
	l.mu.Lock()
	l.ways = append(l.ways, w)
	l.mu.Unlock()
	l.tick(time.Now())
	return func() {
		l.mu.Lock()
		l.ways = slices.DeleteFunc(l.ways, func(o *way) bool { return o == w })
		l.mu.Unlock()
		l.settle(time.Now())
	}
}

// silent says for how long the stream has not answered.
func (l *ladder) silent(s *stream) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.ways {
		if w.wire == wire(s) && !w.waiting.IsZero() {
			return time.Since(w.waiting)
		}
	}
	return 0
}

// setDirect makes these the hub's addresses for datagrams, the preferred ones first.
func (l *ladder) setDirect(targets []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.targets = slices.Clone(targets)
}

// run probes until ctx ends.
func (l *ladder) run(ctx context.Context) {
	tick := time.NewTicker(ladderTick)
	defer tick.Stop()
	defer func() { l.openSocket(nil) }()
	for {
		l.keepDirect(time.Now())
		l.tick(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keepDirect makes the direct ways what setDirect wanted, and their socket anew when it may have gone bad.
func (l *ladder) keepDirect(now time.Time) {
	l.mu.Lock()
	var have []netip.AddrPort
	for _, w := range l.ways {
		if w.direct() {
			have = append(have, w.address)
		}
	}
	targets, same := l.targets, slices.Equal(have, l.targets)
	renew := !l.lost.IsZero() && now.Sub(l.lost) > renewAfter
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
func (l *ladder) openSocket(targets []netip.AddrPort) {
	l.mu.Lock()
	old := l.socket
	l.socket, l.lost = nil, time.Time{}
	l.ways = slices.DeleteFunc(l.ways, (*way).direct)
	l.joiners = map[netip.AddrPort]*joiner{}
	l.mu.Unlock()
	l.settle(time.Now())
	if old != nil {
		l.bind.useSocket(nil)
		old.close()
	}
	if len(targets) == 0 {
		return
	}
	socket, err := listenUDP(0, l.joinerOf)
	if err != nil {
		l.log.Warn("there will be no direct path", "err", err)
		l.setDirect(nil)
		return
	}
	l.mu.Lock()
	var direct []*way
	for _, t := range targets {
		join := &joiner{}
		w := &way{wire: &udpWire{to: t, socket: socket, join: join}, transport: DirectUDP, address: t, need: answersFirst}
		direct = append(direct, w)
		l.joiners[t] = join
	}
	l.socket = socket
	l.ways = append(direct, l.ways...)
	l.mu.Unlock()
	l.bind.useSocket(socket)
}

func (l *ladder) joinerOf(from netip.AddrPort) *joiner {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.joiners[from]
}

// tick sends the pings that are due and draws the conclusions of those that were not answered.
func (l *ladder) tick(now time.Time) {
	type ping struct {
		to      wire
		message []byte
	}
	var pings []ping
	l.mu.Lock()
	for _, w := range l.ways {
		if w.direct() && !w.waiting.IsZero() && now.Sub(w.waiting) > silentAfter {
			if w.works() {
				w.need = answersAgain
			}
			w.answers = 0
		}
		if w.of != nil && !w.waiting.IsZero() && now.Sub(w.waiting) > silentAfter {
			l.laneSilent(w)
		}
		if now.Before(w.next) {
			continue
		}
		size := 0
		if w.direct() {
			size = maxDatagram // it shows that others of that size arrive
		}
		if w.waiting.IsZero() {
			w.waiting, w.pause = now, probeFirst
		}
		l.number++
		l.asked[l.number] = question{w, now}
		takes := l.takes(w.wire, now)
		if w.of != nil {
			takes |= onLane
		}
		pings = append(pings, ping{w.wire, l.prober.seal(pingType, probe{number: l.number, takes: takes}, size)})
		if w.works() {
			w.next = now.Add(probeActive)
		} else {
			w.next = now.Add(w.pause)
			w.pause = min(w.pause*5/4, probeRare)
		}
	}
	for n, q := range l.asked {
		if now.Sub(q.at) > probeRare {
			delete(l.asked, n)
		}
	}
	l.mu.Unlock()
	for _, p := range pings {
		if err := p.to.send([][]byte{p.message}); err != nil {
			l.log.Debug("a probe was not sent", "to", p.to.DstToString(), "err", err)
		}
	}
	l.settle(now)
}

// answered takes a probe from the hub.
func (l *ladder) answered(_ wire, m []byte) {
	says, ok := l.prober.open(pongType, m)
	if !ok {
		return
	}
	now := time.Now()
	l.mu.Lock()
	q, ok := l.asked[says.number]
	delete(l.asked, says.number)
	if !ok {
		l.mu.Unlock()
		return
	}
	w := q.way
	w.rtt, w.waiting = now.Sub(q.at), time.Time{}
	w.answers++
	if w.of != nil {
		l.laneAnswered(w, says)
		l.mu.Unlock()
		return
	}
	w.lanes = says.takes&takesLanes != 0
	switch {
	case !w.works():
		w.next = now.Add(probeFirst)
	case w != l.active.Load():
		w.next = now.Add(probeSpare)
	}
	if u, ok := w.wire.(*udpWire); ok {
		u.join.spare.Store(says.takes&takesSpare != 0)
	}
	if l.setLarge != nil && w == l.active.Load() {
		l.setLarge(says.takes&takesLarge != 0 && l.unmapped.Load())
	}
	if says.instance != l.instance {
		l.instance = says.instance
		tell(l.restarted)
	}
	l.mu.Unlock()
	l.settle(now)
}

// settle makes the best way that works the active one.
func (l *ladder) settle(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.active.Load()
	var best *way
	for _, w := range l.ways {
		if w.of != nil || !w.works() {
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
		l.lost = time.Time{}
	case old != nil && old.direct():
		l.lost = now
	}
	if best == old {
		return
	}
	if old != nil && old.direct() {
		// Other addresses of the hub may still work.
		for _, w := range l.ways {
			if w.direct() {
				w.next, w.pause = now, probeFirst
			}
		}
	}
	l.active.Store(best)
	l.since = now
	if best != nil {
		best.next = now // from now on it is watched closely
	}
	if best == nil {
		l.log.Info("there is no path to the cluster")
		return
	}
	l.log.Info("the path to the cluster", "transport", best.transport, "to", best.DstToString(), "round trip", best.rtt)
	tell(l.moved)
}

// tell leaves a note in a channel; one is enough.
func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
