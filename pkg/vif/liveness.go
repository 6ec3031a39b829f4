package vif

import (
	"bufio"
	"context"
	"strconv"
	"strings"
	"time"
)

// Connected says whether a laptop's tunnel is open and its last authentic packet is younger than within.
func (h *Hub) Connected(k Key, within time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.peers[k]
	if !ok || p.last.IsZero() || time.Since(p.last) > within {
		return false
	}
	return p.streamClosed.IsZero() || time.Since(p.streamClosed) < streamGrace
}

// LastReceived is when the last authentic packet of a laptop came, to within a quarter of a second; zero if never.
func (h *Hub) LastReceived(k Key) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p, ok := h.peers[k]; ok {
		return p.last
	}
	return time.Time{}
}

// watch turns WireGuard's counters into times: a counter that grew means an authentic packet came.
func (h *Hub) watch(ctx context.Context) {
	defer close(h.stopped)
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	var idle memory
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		state, err := h.device.IpcGet()
		if err != nil {
			h.log.Warn("reading WireGuard's counters failed", "err", err)
			continue
		}
		peers := parsePeers(state)
		h.note(peers)
		total := uint64(0)
		for _, p := range peers {
			total += p.received + p.sent
		}
		idle.note(total, time.Now())
	}
}

func (h *Hub) note(peers map[string]peerCounters) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, state := range h.peers {
		c, ok := peers[key.hex()]
		if !ok {
			continue
		}
		if c.received > state.received {
			state.received, state.last = c.received, now
		}
		h.bind.proved(c.endpoint)
		if of := h.bind.stream(state.stream); of != nil && now.Sub(state.lanePinged) > silentAfter {
			of.lane.Store(nil) // it may have died without an end
		}
		heard := state.last
		if state.pinged.After(heard) {
			heard = state.pinged
		}
		switch {
		case !h.bind.open(c.endpoint):
			if state.streamClosed.IsZero() {
				state.streamClosed = now
			}
		case c.endpoint != state.stream && !h.bind.open(state.stream) && now.Sub(heard) > streamGrace:
			// Datagrams have no end, but a process that ends takes its stream along.
			state.streamClosed = heard
		default:
			state.streamClosed = time.Time{}
		}
	}
}

type peerCounters struct {
	received  uint64
	sent      uint64
	endpoint  string
	handshake int64 // Unix nanoseconds; 0 for never
}

// parsePeers reads WireGuard's configuration protocol (https://www.wireguard.com/xplatform/).
func parsePeers(state string) map[string]peerCounters {
	peers := map[string]peerCounters{}
	var key string
	lines := bufio.NewScanner(strings.NewReader(state))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		p := peers[key]
		switch name {
		case "public_key":
			key = value
			continue
		case "endpoint":
			p.endpoint = value
		case "rx_bytes":
			p.received, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			p.sent, _ = strconv.ParseUint(value, 10, 64)
		case "last_handshake_time_sec":
			seconds, _ := strconv.ParseInt(value, 10, 64)
			p.handshake = seconds * int64(time.Second)
		case "last_handshake_time_nsec":
			rest, _ := strconv.ParseInt(value, 10, 64)
			p.handshake += rest
		default:
			continue
		}
		peers[key] = p
	}
	return peers
}
