package mux

import (
	"fmt"
	"time"
)

const (
	// tickInterval is how often an end checks whether its peer is there, while the peer has
	// something to answer.
	tickInterval = 250 * time.Millisecond
	// silentTicks is how many ticks after a ping the peer may send nothing. Ticks are counted
	// rather than time, because this process may have been stopped itself.
	silentTicks = 6
	// pingStream is the number of no stream. The peer answers data on it with a reset, as on any
	// stream that does not exist: these are ping and pong. A pong means that the peer has received
	// everything that was sent before the ping, whatever happens to the local process.
	pingStream = 0
)

// keepalive is what the end that opens streams knows about its peer's presence. Conn.mu guards it.
type keepalive struct {
	ticking    bool                   // a next tick is due
	sent       bool                   // something was sent since the last ping
	received   bool                   // something was received since the last tick
	missed     int                    // ticks in a row without anything received after a ping
	usual      int                    // how many ticks a pong usually takes, on a long path
	silent     bool                   // missed has reached silentTicks
	pings      uint64                 // sent
	pongs      uint64                 // received
	deliveries map[*Delivery]struct{} // not known to have arrived
	onSilence  func()
}

// Delivery tracks something written to a stream, so that it can be sent to somebody else if the
// peer has not received it.
type Delivery struct {
	conn   *Conn
	pings  uint64 // sent when the delivery began: the pong of the next one says that its beginning has arrived
	onLost func()
	lost   bool
}

// OnSilence makes f be called each time the peer falls silent. It must be called before Run.
func (c *Conn) OnSilence(f func()) { c.ka.onSilence = f }

// Conn returns the connection that carries the stream.
func (s *Stream) Conn() *Conn { return s.conn }

// Track begins a delivery on the stream. It must be called before the first byte of it is written.
// If the peer falls silent and has not received it, onLost is called: it must cut the stream, or
// the delivery's part of it. The caller ends the delivery with Done.
func (s *Stream) Track(onLost func()) *Delivery {
	c := s.conn
	c.mu.Lock()
	d := &Delivery{conn: c, pings: c.ka.pings, onLost: onLost}
	if c.ka.silent {
		d.lost = true
		c.mu.Unlock()
		onLost()
		return d
	}
	if c.ka.deliveries == nil {
		c.ka.deliveries = map[*Delivery]struct{}{}
	}
	c.ka.deliveries[d] = struct{}{}
	c.mu.Unlock()
	return d
}

// Done ends a delivery, and reports whether the peer has received it or may have. If not, it may be
// sent to somebody else, and an answer to it must not be used.
func (d *Delivery) Done() bool {
	d.conn.mu.Lock()
	defer d.conn.mu.Unlock()
	delete(d.conn.ka.deliveries, d)
	return !d.lost
}

// expectPongLocked notes that something was sent that the peer has to receive.
func (c *Conn) expectPongLocked() {
	c.ka.sent = true
	if !c.ka.ticking && c.accept == nil {
		c.ka.ticking = true
		time.AfterFunc(tickInterval, c.tick)
	}
}

func (c *Conn) handlePong() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ka.pongs == c.ka.pings {
		return fmt.Errorf("%w: a pong without a ping", errFrame)
	}
	c.ka.pongs++
	c.ka.usual = max(c.ka.missed, c.ka.usual-1)
	c.ka.received = true
	return nil
}

// tick sends a ping if the peer may not have received everything, and counts the ticks in which
// nothing was received.
func (c *Conn) tick() {
	c.mu.Lock()
	ka := &c.ka
	waiting := ka.pings > ka.pongs
	switch {
	case c.err != nil || !waiting && !ka.sent:
		ka.ticking = false
		c.mu.Unlock()
		return
	case ka.received || !waiting:
		ka.missed, ka.silent = 0, false
	default:
		ka.missed++
	}
	ka.received = false
	if !waiting {
		ka.sent = false
		ka.pings++
		c.queueLocked(pingStream, kindData, []byte{0})
		c.wakeWriterLocked()
	}
	time.AfterFunc(tickInterval, c.tick)
	if ka.missed != silentTicks {
		c.mu.Unlock()
		return
	}
	ka.silent = true
	c.running.Add(1) // Run waits for the calls below
	defer c.running.Done()
	lost := c.loseDeliveriesLocked()
	c.mu.Unlock()
	if ka.onSilence != nil {
		ka.onSilence()
	}
	for _, d := range lost {
		d.onLost()
	}
}

// loseDeliveriesLocked marks the deliveries as lost that are not known to have arrived, and returns
// them.
func (c *Conn) loseDeliveriesLocked() (lost []*Delivery) {
	for d := range c.ka.deliveries {
		if d.pings >= c.ka.pongs {
			d.lost = true
			lost = append(lost, d)
		}
	}
	return lost
}

// pongOverdueLocked reports whether the peer's pong is later than usual. It is consulted when the
// connection ends: whoever closed it noticed the loss before silentTicks had passed here.
func (c *Conn) pongOverdueLocked() bool { return c.ka.missed > c.ka.usual && !c.ka.received }
