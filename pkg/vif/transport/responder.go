package transport

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/replay"

	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

const (
	// maxSources is how many addresses one laptop's datagrams are expected from at a time, and
	// sourceMemory is how long an address is expected after the last probe from there.
	maxSources   = 8
	sourceMemory = time.Minute
)

// Responder is the hub's end of all paths. It answers the laptops' probes, and knows from them
// which paths each laptop has. Make it with NewResponder, and give its Bind to WireGuard.
type Responder struct {
	log  *slog.Logger
	key  wgkey.Key
	bind *bind
	// Instance tells this process from the one before in the answers to probes.
	Instance uint64
	socket   *udpSocket // nil without UDP
	offer    byte       // the features in each answer

	// mu guards the fields below.
	mu      sync.Mutex
	byKey   map[wgkey.Key]*laptop
	byProbe map[LaptopID]*laptop
	sources map[netip.AddrPort]*source
}

// laptop is what the responder knows of one laptop.
type laptop struct {
	prober *Prober // nil when its key is not a valid point
	pings  replay.Filter
	// pinged is when its last probe came, and features are those of that probe.
	pinged   time.Time
	features byte
	// stream names the stream that it last sent a probe on, express streams apart, and
	// expressPinged is when its last probe on an express stream came.
	stream        string
	expressPinged time.Time
}

// source is an address that a laptop's datagrams come from. Only a probe that the laptop sealed
// makes one.
type source struct {
	laptop      *laptop
	seen        time.Time
	reassembler reassembler
}

// PeerPaths is what the Responder sees of a laptop's paths.
type PeerPaths struct {
	// EndpointOpen reports whether the wire is open on which WireGuard last heard from the laptop.
	// An address never closes.
	EndpointOpen bool
	// StreamOpen reports whether the laptop's stream is open.
	StreamOpen bool
	// Pinged is when the laptop's last probe came.
	Pinged time.Time
}

// NewResponder makes the hub's end for the hub's private key. log is required. The caller closes it
// after WireGuard's device.
func NewResponder(key wgkey.Key, log *slog.Logger) *Responder {
	r := &Responder{
		log:      log,
		key:      key,
		offer:    FeatureLarge | FeatureExpress,
		Instance: rand.Uint64(),
		byKey:    map[wgkey.Key]*laptop{},
		byProbe:  map[LaptopID]*laptop{},
		sources:  map[netip.AddrPort]*source{},
	}
	r.bind = newBind(nil, r.handlePing)
	return r
}

// Bind is what WireGuard sends and receives with.
func (r *Responder) Bind() conn.Bind { return r.bind }

// DisableExpress rules express streams out. Call it before WireGuard starts.
func (r *Responder) DisableExpress() { r.offer &^= FeatureExpress }

// ListenUDP takes datagrams on a port too. Call it at most once, before WireGuard starts.
func (r *Responder) ListenUDP(port uint16) (err error) {
	if r.socket, err = listenUDP(port, r.reassemblerOf); err != nil {
		return err
	}
	r.bind.useSocket(r.socket)
	return nil
}

// ServeStream carries WireGuard's messages over rw until it ends or ctx does. It closes rw.
func (r *Responder) ServeStream(ctx context.Context, rw io.ReadWriteCloser) error {
	return r.bind.serve(ctx, rw, nil)
}

// Close closes the UDP socket. Streams end with their context.
func (r *Responder) Close() {
	if r.socket != nil {
		r.socket.close()
	}
}

// SetLaptops makes these public keys the whole set of laptops whose probes are answered.
func (r *Responder) SetLaptops(keys []wgkey.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.byKey
	r.byKey, r.byProbe = make(map[wgkey.Key]*laptop, len(keys)), make(map[LaptopID]*laptop, len(keys))
	for _, key := range keys {
		l := known[key]
		if l == nil {
			l = &laptop{}
			var err error
			if l.prober, err = NewProber(r.key, key, key); err != nil {
				r.log.Warn("a laptop's public key is not valid: its probes get no answer", "err", err)
			}
		}
		r.byKey[key] = l
		if l.prober != nil {
			r.byProbe[l.prober.id] = l
		}
		delete(known, key)
	}
	for _, gone := range known {
		maps.DeleteFunc(r.sources, func(_ netip.AddrPort, s *source) bool { return s.laptop == gone })
	}
}

// TakesLarge reports whether a laptop takes large packets.
func (r *Responder) TakesLarge(key wgkey.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.byKey[key]
	return l != nil && l.features&FeatureLarge != 0
}

// Observe takes the name of the wire on which WireGuard last heard from a laptop, and returns what
// is known about the laptop's paths. The hub calls it regularly, because it also gives up an
// express stream that has had no probe for some time.
func (r *Responder) Observe(key wgkey.Key, endpoint string, now time.Time) PeerPaths {
	r.bind.authenticated(endpoint)
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.byKey[key]
	if l == nil {
		return PeerPaths{}
	}
	if parent := r.bind.stream(l.stream); parent != nil && now.Sub(l.expressPinged) > silentAfter {
		parent.express.Store(nil) // it may have died without closing
	}
	return PeerPaths{EndpointOpen: r.bind.open(endpoint), StreamOpen: r.bind.open(l.stream), Pinged: l.pinged}
}

// Stream is a laptop's stream, express streams apart; nil when it has none.
func (r *Responder) Stream(key wgkey.Key) *StreamWire {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.byKey[key]
	if l == nil {
		return nil
	}
	return r.bind.stream(l.stream)
}

// Sources is the number of addresses that datagrams are expected from.
func (r *Responder) Sources() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sources)
}

// Streams is the number of open streams, and of those without proof that a laptop opened them.
func (r *Responder) Streams() (open, unauthenticated int) {
	r.bind.mu.Lock()
	open = len(r.bind.streams)
	r.bind.mu.Unlock()
	return open, r.bind.unauth.count()
}

// handlePing takes a probe. A probe that no laptop sealed, or that has come before, gets no answer:
// a stranger learns nothing, and nobody can make this hub send anything to others.
func (r *Responder) handlePing(from Wire, m []byte) {
	id, ok := probeOf(PingType, m)
	if !ok {
		return
	}
	r.mu.Lock()
	l := r.byProbe[id]
	r.mu.Unlock()
	if l == nil {
		return
	}
	ping, ok := l.prober.Open(PingType, m)
	if !ok {
		return
	}
	features := r.offer
	r.mu.Lock()
	if ok = l.pings.ValidateCounter(ping.Number, math.MaxUint64); ok {
		l.pinged, l.features = time.Now(), ping.Features
		switch w := from.(type) {
		case *datagramWire:
			reassembler := r.addSourceLocked(w.to, l)
			reassembler.sendParity.Store(ping.Features&FeatureParity != 0)
			if reassembler.loses(l.pinged) {
				features = FeatureParity
			}
		case *StreamWire:
			r.bind.unauth.authenticate(w)
			if ping.Features&FeatureOnExpress == 0 {
				l.stream = w.id
			} else if !l.pairLocked(w, r.bind.stream(l.stream)) {
				features &^= FeatureExpress
			}
		}
	}
	r.mu.Unlock()
	if !ok {
		return
	}
	pong := l.prober.Seal(PongType, Probe{Number: ping.Number, Instance: r.Instance, Features: features}, len(m))
	if err := from.Send([][]byte{pong}); err != nil {
		r.log.Debug("a probe was not answered", "address", from.DstToString(), "err", err)
	}
}

// pairLocked makes one stream of a laptop the express stream beside another, and reports whether it
// could. The caller holds the Responder's mu.
func (l *laptop) pairLocked(express, parent *StreamWire) bool {
	if parent == nil || parent == express {
		return false
	}
	express.parent.Store(parent)
	parent.express.Store(express)
	l.expressPinged = l.pinged
	return true
}

// addSourceLocked remembers an address that a laptop's datagrams come from, and forgets the oldest
// when there are too many.
func (r *Responder) addSourceLocked(from netip.AddrPort, l *laptop) *reassembler {
	now := time.Now()
	if s, ok := r.sources[from]; ok && s.laptop == l {
		s.seen = now
		return &s.reassembler
	}
	var oldest netip.AddrPort
	count := 0
	for a, s := range r.sources {
		if s.laptop != l {
			continue
		}
		if now.Sub(s.seen) > sourceMemory {
			delete(r.sources, a)
			continue
		}
		if count++; !oldest.IsValid() || s.seen.Before(r.sources[oldest].seen) {
			oldest = a
		}
	}
	if count >= maxSources {
		delete(r.sources, oldest)
	}
	s := &source{laptop: l, seen: now}
	r.sources[from] = s
	return &s.reassembler
}

func (r *Responder) reassemblerOf(from netip.AddrPort) *reassembler {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.sources[from]; ok {
		return &s.reassembler
	}
	return nil
}
