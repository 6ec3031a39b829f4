package netstack

import (
	"maps"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// ackDelay is how long the acknowledgement of a small message waits at least; it is twice that at most.
	ackDelay = time.Millisecond
	// ackSmall is what may be acknowledged late, in bytes. Of more the other side may be waiting to send on.
	ackSmall = 4 << 10
	// ackBulk is what may be acknowledged late of bulk, in bytes; that is what brings bulkSize in bulkTime. Its sender has more under way and is
	// not kept waiting: if it were, it would not be bulk for long.
	ackBulk  = 256 << 10
	bulkSize = 1 << 20
	bulkTime = 8 * time.Millisecond
	// ackFlows bounds the connections that are remembered. What is not remembered does not wait.
	ackFlows = 8192
	// plainOptions is the length of a segment's options with a timestamp and nothing else, such as SACK.
	plainOptions = 12
)

// ackDelayer is netstack's link. Netstack acknowledges each message at once, though the answer to it, or the next request, says the same a
// moment later: half of the packets of a request were bare acknowledgements. Here those of small messages wait for that moment, and those of
// bulk for more of it.
type delayedAcks struct {
	*channel.Endpoint

	mu      sync.Mutex
	flows   map[stack.TransportEndpointID]*ackFlow
	waiting []*ackFlow
	tick    *time.Timer // runs while somebody waits
	ticks   uint64
	now     func() time.Time
}

// ackFlow is one connection.
type ackFlow struct {
	acked  uint32              // as the other side knows
	held   *stack.PacketBuffer // an acknowledgement that waits, or nil
	since  uint64              // ticks
	queued bool                // among the waiting
	bulk   bool
	// Where and when it was last seen how much comes.
	counted uint32
	began   time.Time
}

func newDelayedAcks(link *channel.Endpoint) *delayedAcks {
	d := &delayedAcks{Endpoint: link, flows: map[stack.TransportEndpointID]*ackFlow{}, now: time.Now}
	d.tick = time.AfterFunc(time.Hour, d.release)
	d.tick.Stop()
	return d
}

// WritePackets implements stack.LinkEndpoint.
func (d *delayedAcks) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	// Netstack writes one at a time, but where it cuts a large one itself.
	if packets.Len() == 1 && d.delays(packets.AsSlice()[0]) {
		return 1, nil
	}
	return d.Endpoint.WritePackets(packets)
}

func (d *delayedAcks) delays(p *stack.PacketBuffer) bool {
	if p.TransportProtocolNumber != header.TCPProtocolNumber {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.delay(p)
}

// delay says whether a segment is kept for a moment. What was kept of its connection is dropped: this one says it too. d.mu is held.
func (d *delayedAcks) delay(p *stack.PacketBuffer) bool {
	segment := header.TCP(p.TransportHeader().Slice())
	id := stack.TransportEndpointID{LocalPort: segment.SourcePort(), RemotePort: segment.DestinationPort()}
	network := p.Network()
	id.LocalAddress, id.RemoteAddress = network.SourceAddress(), network.DestinationAddress()
	acked := segment.AckNumber()
	f := d.flows[id]
	if f == nil {
		if len(d.flows) >= ackFlows {
			maps.DeleteFunc(d.flows, func(_ stack.TransportEndpointID, f *ackFlow) bool { return !f.queued })
		}
		if len(d.flows) < ackFlows {
			d.flows[id] = &ackFlow{acked: acked, counted: acked, began: d.now()}
		}
		return false
	}
	f.count(acked, d.now)
	bare := p.Data().Size() == 0 && segment.Flags() == header.TCPFlagAck && len(segment.Options()) <= plainOptions
	news := acked - f.acked
	waits := bare && news > 0 && (f.held == nil && news <= ackSmall || f.bulk && news <= ackBulk)
	if f.held == nil {
		f.since = d.ticks
	}
	f.drop()
	if !waits {
		f.acked = acked
		return false
	}
	f.held = p.Clone()
	if !f.queued {
		f.queued = true
		if d.waiting = append(d.waiting, f); len(d.waiting) == 1 {
			d.tick.Reset(ackDelay)
		}
	}
	return true
}

// count finds out whether what comes is bulk.
func (f *ackFlow) count(acked uint32, now func() time.Time) {
	if acked-f.counted < bulkSize {
		return
	}
	at := now()
	f.bulk = at.Sub(f.began) <= bulkTime
	f.counted, f.began = acked, at
}

func (f *ackFlow) drop() {
	if f.held != nil {
		f.held.DecRef()
		f.held = nil
	}
}

// release sends what has waited since the last tick.
func (d *delayedAcks) release() {
	var due stack.PacketBufferList
	d.mu.Lock()
	rest := d.waiting[:0]
	for _, f := range d.waiting {
		switch {
		case f.held == nil:
			f.queued = false
		case f.since == d.ticks:
			rest = append(rest, f)
		default:
			f.acked = header.TCP(f.held.TransportHeader().Slice()).AckNumber()
			due.PushBack(f.held)
			f.held, f.queued = nil, false
		}
	}
	clear(d.waiting[len(rest):])
	d.waiting = rest
	d.ticks++
	if len(rest) > 0 {
		d.tick.Reset(ackDelay)
	}
	d.mu.Unlock()
	_, _ = d.Endpoint.WritePackets(due) // what finds no room is lost, as on any link
	due.DecRef()
}

// Close implements stack.LinkEndpoint.
func (d *delayedAcks) Close() {
	d.tick.Stop()
	d.mu.Lock()
	for _, f := range d.waiting {
		f.drop()
	}
	d.waiting = nil
	d.mu.Unlock()
	d.Endpoint.Close()
}
