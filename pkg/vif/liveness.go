package vif

import (
	"bufio"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/detour-dev/detour/pkg/tuning"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// Connected reports whether a laptop's tunnel is open and its last authentic packet is younger than
// within.
func (h *Hub) Connected(k wgkey.Key, within time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.peers[k]
	if !ok || p.lastReceived.IsZero() || time.Since(p.lastReceived) > within {
		return false
	}
	return p.streamClosed.IsZero() || time.Since(p.streamClosed) < streamGrace
}

// LastReceived is when the last authentic packet of a laptop came, to within a quarter of a second;
// zero if never.
func (h *Hub) LastReceived(k wgkey.Key) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p, ok := h.peers[k]; ok {
		return p.lastReceived
	}
	return time.Time{}
}

// watch turns WireGuard's counters into times: a counter that grew means that an authentic packet
// came.
func (h *Hub) watch(ctx context.Context) {
	defer close(h.stopped)
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	var idle tuning.IdleMemory
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
		idle.Note(total, time.Now())
	}
}

// note updates what is known of each laptop from WireGuard's counters.
func (h *Hub) note(peers map[string]peerCounters) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, state := range h.peers {
		c, ok := peers[key.Hex()]
		if !ok {
			continue
		}
		if c.received > state.received {
			state.received, state.lastReceived = c.received, now
		}
		paths := h.paths.Observe(key, c.endpoint, now)
		last := state.lastReceived
		if paths.Pinged.After(last) {
			last = paths.Pinged
		}
		switch {
		case !paths.EndpointOpen:
			if state.streamClosed.IsZero() {
				state.streamClosed = now
			}
		case !paths.StreamOpen && now.Sub(last) > streamGrace:
			// Datagrams have no end, but a process that ends takes its stream along.
			state.streamClosed = last
		default:
			state.streamClosed = time.Time{}
		}
	}
}

// peerCounters is what WireGuard's device knows of one peer.
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
