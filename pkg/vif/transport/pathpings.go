package transport

import "time"

// This file has the path selector's probes: the pings that are due, their pongs, and the paths that
// do not answer. pathselect.go chooses among the paths that do.

type pendingPing struct {
	path   *path
	sentAt time.Time
}

// duePing is a ping to send.
type duePing struct {
	to      Wire
	message []byte
}

// tick sends the pings that are due, and gives up paths whose pings had no answer.
func (ps *PathSelector) tick(now time.Time) {
	ps.mu.Lock()
	ps.giveUpLocked(now)
	due := ps.duePingsLocked(now)
	ps.mu.Unlock()
	for _, p := range due {
		if err := p.to.Send([][]byte{p.message}); err != nil {
			ps.log.Debug("a probe was not sent", "address", p.to.DstToString(), "err", err)
		}
	}
	ps.selectBest(now)
}

// giveUpLocked stops using paths that have been silent for too long, and forgets old pings.
func (ps *PathSelector) giveUpLocked(now time.Time) {
	for _, p := range ps.paths {
		if p.unansweredSince.IsZero() || now.Sub(p.unansweredSince) <= silentAfter {
			continue
		}
		switch {
		case p.direct():
			if p.works() {
				p.pongsNeeded = pongsAgain
			}
			p.pongs = 0
		case p.parent != nil:
			ps.expressSilentLocked(p)
		}
	}
	for n, sent := range ps.pings {
		if now.Sub(sent.sentAt) > pingRare {
			delete(ps.pings, n)
		}
	}
}

// duePingsLocked makes the pings that are due, and plans the next ones.
func (ps *PathSelector) duePingsLocked(now time.Time) (due []duePing) {
	for _, p := range ps.paths {
		if now.Before(p.nextPing) {
			continue
		}
		size := 0
		if p.direct() {
			size = MaxDatagram // a pong shows that datagrams of this size arrive
		}
		if p.unansweredSince.IsZero() {
			p.unansweredSince, p.pause = now, pingFirst
		}
		ps.lastPing++
		ps.pings[ps.lastPing] = pendingPing{path: p, sentAt: now}
		probe := Probe{Number: ps.lastPing, Features: ps.features(p.Wire, now)}
		if p.parent != nil {
			probe.Features |= FeatureOnExpress
		}
		due = append(due, duePing{to: p.Wire, message: ps.prober.Seal(PingType, probe, size)})
		if p.works() {
			p.nextPing = now.Add(pingActive)
		} else {
			p.nextPing = now.Add(p.pause)
			p.pause = min(p.pause*5/4, pingRare)
		}
	}
	return due
}

// handlePong takes a probe from the hub.
func (ps *PathSelector) handlePong(_ Wire, m []byte) {
	pong, ok := ps.prober.Open(PongType, m)
	if !ok {
		return
	}
	now := time.Now()
	ps.mu.Lock()
	sent, ok := ps.pings[pong.Number]
	delete(ps.pings, pong.Number)
	if !ok {
		ps.mu.Unlock()
		return
	}
	p := sent.path
	p.rtt, p.unansweredSince = now.Sub(sent.sentAt), time.Time{}
	p.pongs++
	if p.parent != nil {
		ps.expressAnsweredLocked(p, pong)
		ps.mu.Unlock()
		return
	}
	p.knowsExpress = pong.Features&FeatureExpress != 0
	switch {
	case !p.works():
		p.nextPing = now.Add(pingFirst)
	case p != ps.active.Load():
		p.nextPing = now.Add(pingSpare)
	}
	if u, ok := p.Wire.(*datagramWire); ok {
		u.reassembler.sendParity.Store(pong.Features&FeatureParity != 0)
	}
	if ps.large.set != nil && p == ps.active.Load() {
		ps.large.set(pong.Features&FeatureLarge != 0 && ps.large.allowed.Load())
	}
	if pong.Instance != ps.instance {
		ps.instance = pong.Instance
		notify(ps.hubRestarted)
	}
	ps.mu.Unlock()
	ps.selectBest(now)
}

// features are the features that the next ping offers to the hub. The hub must not send large
// packets while fragments get lost, because a packet is lost with any of its fragments; it is asked
// for parity fragments then.
func (ps *PathSelector) features(w Wire, now time.Time) (offer byte) {
	if ps.large.set != nil && ps.large.allowed.Load() && !loses(ps.Current(), now) {
		offer |= FeatureLarge
	}
	if loses(w, now) {
		offer |= FeatureParity
	}
	return offer
}

// loses reports whether fragments were lost lately on a wire.
func loses(w Wire, now time.Time) bool {
	u, ok := w.(*datagramWire)
	return ok && u.reassembler != nil && u.reassembler.loses(now)
}
