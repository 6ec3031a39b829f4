package vif

import (
	"context"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/detour-dev/detour/pkg/tuning"
)

const (
	// The pause between two attempts at a handshake grows from handshakeMin to handshakeMax.
	handshakeMin = 250 * time.Millisecond
	handshakeMax = 5 * time.Second
	// After a restart of the hub, connections are reset this many times, a second apart: a packet
	// may be lost.
	flowResets     = 3
	flowResetPause = time.Second
)

// follow keeps WireGuard's session, and what the hub knows of this laptop, up to date when the path
// or the hub changes.
func (i *Interface) follow(ctx context.Context) {
	f := follower{Interface: i, timer: time.NewTimer(time.Hour)}
	defer f.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.paths.PathChanged():
			f.pathChanged()
		case <-i.paths.HubRestarted():
			f.hubAnswered()
		case <-f.timer.C:
			f.tick()
		}
	}
}

// follower is the state of follow. It belongs to that goroutine.
type follower struct {
	*Interface
	timer *time.Timer
	// handshakeSince is when a handshake became necessary; zero when none is under way.
	handshakeSince time.Time
	pause          time.Duration // until the next attempt
	hubKnown       bool          // a process has answered as the hub
	hubRestarted   bool          // the flows of the hub's former process are to be reset after the handshake
	resets         int           // how many resets are still to come
}

// pathChanged tells the hub about a new path: the hub answers where it last heard from this laptop.
func (f *follower) pathChanged() {
	if !f.hubKnown && f.handshakeSince.IsZero() {
		f.beginHandshake()
	} else if peer := f.device.LookupPeer(device.NoisePublicKey(f.peer)); peer != nil {
		peer.SendKeepalive()
	}
}

// hubAnswered notes that another process than before answers as the hub.
func (f *follower) hubAnswered() {
	if f.hubKnown {
		f.log.Info("another process of the traffic-manager answers: resetting the connections through the one before")
		f.hubRestarted = true
	}
	if f.hubKnown || f.handshakeSince.IsZero() && !f.handshakeDone(time.Time{}) {
		f.beginHandshake()
	}
	f.hubKnown = true
}

// tick tries the handshake again, or resets flows.
func (f *follower) tick() {
	switch {
	case !f.handshakeSince.IsZero() && !f.handshakeDone(f.handshakeSince):
		// The hub may learn about this laptop a moment after the laptop learns about the hub, and
		// WireGuard alone would wait for 5 s.
		f.pause = min(f.pause*2, handshakeMax)
		f.startHandshake()
		f.timer.Reset(f.pause)
		return
	case !f.handshakeSince.IsZero():
		f.handshakeSince = time.Time{}
		if f.hubRestarted {
			f.hubRestarted, f.resets = false, flowResets
		}
	}
	if f.resets > 0 {
		f.resets--
		if err := f.firewall.ResetFlows(); err != nil {
			f.log.Warn("resetting connections failed", "err", err)
		}
		f.timer.Reset(flowResetPause)
	}
}

func (f *follower) beginHandshake() {
	f.handshakeSince, f.pause = time.Now(), handshakeMin
	f.startHandshake()
	f.timer.Reset(f.pause)
}

// startHandshake sends the first message of a handshake at once.
func (i *Interface) startHandshake() {
	peer := i.device.LookupPeer(device.NoisePublicKey(i.peer))
	if peer == nil {
		return
	}
	peer.ExpireCurrentKeypairs()
	if err := peer.SendHandshakeInitiation(false); err != nil {
		i.log.Debug("starting a handshake failed", "err", err)
	}
}

// handshakeDone reports whether a handshake was completed after a time; for the zero time, whether
// there ever was one.
func (i *Interface) handshakeDone(after time.Time) bool {
	state, err := i.device.IpcGet()
	if err != nil {
		return false
	}
	at := parsePeers(state)[i.peer.Hex()].handshake
	return at != 0 && time.Unix(0, at).After(after)
}

// watch notes when authentic packets come from the cluster. Until the first one it looks more
// often, for Ready.
func (i *Interface) watch(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var idle tuning.IdleMemory
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
		counters := parsePeers(state)[i.peer.Hex()]
		received := counters.received
		idle.Note(received+counters.sent, time.Now())
		i.mu.Lock()
		if received > i.received {
			i.received, i.lastReceived, i.problem = received, time.Now(), nil
			if first {
				first = false
				close(i.connected)
				tick.Reset(statsInterval)
			}
		}
		i.mu.Unlock()
	}
}
