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
	// ackDelay is how long the acknowledgement of a small message waits at least; at most it waits
	// twice as long.
	ackDelay = time.Millisecond
	// ackSmall is how much data may be acknowledged late, in bytes. The sender of more may be
	// waiting for the acknowledgement.
	ackSmall = 4 << 10
	// ackBulk is how much data of a bulk flow may be acknowledged late, in bytes. A flow is bulk
	// when it brings bulkSize bytes in bulkTime. Its sender has more in flight and does not wait:
	// if it waited, its flow would not stay bulk for long.
	ackBulk  = 256 << 10
	bulkSize = 1 << 20
	bulkTime = 8 * time.Millisecond
	// ackFlows bounds the number of connections in the table. The acknowledgements of the others do
	// not wait.
	ackFlows = 8192
	// plainOptions is the length of a segment's options with a timestamp and without others, such
	// as SACK.
	plainOptions = 12
)

// delayedAcks is netstack's link. Netstack acknowledges each message at once, though the answer to
// it, or the next request, acknowledges it a moment later: half of the packets of a request were
// bare acknowledgements. This link holds the acknowledgements of small messages for that moment,
// and those of bulk flows until more data has come.
//
// Gain: fewer packets for each request, and so less CPU at both ends. Cost: a table of connections,
// and up to 2 ms before a bare acknowledgement. BenchmarkRequests compares it with the plain link;
// the figures are in docs/design/performance-log.md.
type delayedAcks struct {
	*channel.Endpoint
	now   func() time.Time
	limit int // of flows

	// mu guards the fields below.
	mu      sync.Mutex
	flows   map[stack.TransportEndpointID]*ackFlow
	waiting []*ackFlow
	tick    *time.Timer // runs while acknowledgements wait
	ticks   uint64
}

// ackFlow is one connection.
type ackFlow struct {
	acked  uint32              // the number that the other side knows
	held   *stack.PacketBuffer // an acknowledgement that waits, or nil
	since  uint64              // the tick at which held began to wait
	queued bool                // in delayedAcks.waiting
	bulk   bool
	// Where and when the last measurement of the flow's rate began.
	counted uint32
	began   time.Time
}

func newDelayedAcks(link *channel.Endpoint) *delayedAcks {
	d := &delayedAcks{Endpoint: link, now: time.Now, limit: ackFlows, flows: map[stack.TransportEndpointID]*ackFlow{}}
	d.tick = time.AfterFunc(time.Hour, d.release)
	d.tick.Stop()
	return d
}

// WritePackets implements stack.LinkEndpoint.
func (d *delayedAcks) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	// Netstack writes one packet at a time, except when it cuts a large one itself.
	if packets.Len() == 1 && d.hold(packets.AsSlice()[0]) {
		return 1, nil
	}
	return d.Endpoint.WritePackets(packets)
}

func (d *delayedAcks) hold(p *stack.PacketBuffer) bool {
	if p.TransportProtocolNumber != header.TCPProtocolNumber {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.holdLocked(p)
}

// holdLocked reports whether a segment is held for a moment. It drops the segment of the same
// connection that is held already, because this one acknowledges its data too.
func (d *delayedAcks) holdLocked(p *stack.PacketBuffer) bool {
	segment := header.TCP(p.TransportHeader().Slice())
	id := stack.TransportEndpointID{LocalPort: segment.SourcePort(), RemotePort: segment.DestinationPort()}
	network := p.Network()
	id.LocalAddress, id.RemoteAddress = network.SourceAddress(), network.DestinationAddress()
	acked := segment.AckNumber()
	f := d.flows[id]
	if f == nil {
		if len(d.flows) >= d.limit {
			maps.DeleteFunc(d.flows, func(_ stack.TransportEndpointID, f *ackFlow) bool { return !f.queued })
		}
		if len(d.flows) < d.limit {
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

// count measures whether the flow is bulk.
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

// release sends the acknowledgements that have waited since the last tick.
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
	_, _ = d.Endpoint.WritePackets(due) // packets that find no room are lost, as on any link
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
