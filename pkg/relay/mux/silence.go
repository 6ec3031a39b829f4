package mux

import (
	"fmt"
	"time"
)

const (
	// beat is how often it is looked whether the other end is there, while there is something for it to answer.
	beat = 250 * time.Millisecond
	// silence is how many beats it may say nothing after a ping. Beats are counted, not time, because this process may have stood still itself.
	silence = 6
	// nobody is the number of no stream. Data on it is answered with a reset, as on any stream that is not there: these are a ping and its answer. The other
	// end answers when it has taken all that was said before, whatever becomes of the local process.
	nobody = 0
)

// pulse is what an end that opens streams knows of the other's being there; Conn.mu guards it.
type pulse struct {
	beating    bool // there is a next beat
	said       bool // something was, since the last ping
	heard      bool // something was, since the last beat
	missed     int  // beats without a word
	usual      int  // that many are missed before a ping is answered, on a long way
	silent     bool
	pings      uint64
	pongs      uint64
	questions  map[*Delivery]struct{} // that have no answer
	fellSilent func()
}

// Delivery is something said on a stream that may be said to somebody else, as long as the other end has not taken it.
type Delivery struct {
	conn      *Conn
	after     uint64 // pings, when it began: the next one's answer says that its beginning was taken
	untaken   func()
	withdrawn bool
}

// OnSilence has f called each time the other end falls silent. It is to be called before Run.
func (c *Conn) OnSilence(f func()) { c.fellSilent = f }

// Conn is what carries the stream.
func (s *Stream) Conn() *Conn { return s.conn }

// Track begins a question on the stream, before its first byte is written. If the other end falls silent and has not taken it, untaken is called: it is to cut the
// stream, or what there is of the question on it.
func (s *Stream) Track(untaken func()) *Delivery {
	c := s.conn
	c.mu.Lock()
	q := &Delivery{conn: c, after: c.pings, untaken: untaken}
	if c.silent {
		q.withdrawn = true
		c.mu.Unlock()
		untaken()
		return q
	}
	if c.questions == nil {
		c.questions = map[*Delivery]struct{}{}
	}
	c.questions[q] = struct{}{}
	c.mu.Unlock()
	return q
}

// Done ends a question. It says no when the other end has not taken it: then it may be said to somebody else, and no answer to it will do.
func (q *Delivery) Done() bool {
	q.conn.mu.Lock()
	defer q.conn.mu.Unlock()
	delete(q.conn.questions, q)
	return !q.withdrawn
}

// owes notes that something was said that the other end is to take; c.mu is held.
func (c *Conn) owes() {
	c.said = true
	if !c.beating && c.accept == nil {
		c.beating = true
		time.AfterFunc(beat, c.beat)
	}
}

// pong takes the answer to a ping.
func (c *Conn) pong() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pongs == c.pings {
		return fmt.Errorf("%w: an answer to no ping", errFrame)
	}
	c.pongs++
	c.usual = max(c.missed, c.usual-1)
	c.heard = true
	return nil
}

// beat asks whether the other end is there, when there is something that it may not have taken, and counts how often it has not said anything.
func (c *Conn) beat() {
	c.mu.Lock()
	waits := c.pings > c.pongs
	switch {
	case c.err != nil || !waits && !c.said:
		c.beating = false
		c.mu.Unlock()
		return
	case c.heard || !waits:
		c.missed, c.silent = 0, false
	default:
		c.missed++
	}
	c.heard = false
	if !waits {
		c.said = false
		c.pings++
		c.frame(nobody, data, []byte{0})
		c.later()
	}
	time.AfterFunc(beat, c.beat)
	if c.missed != silence {
		c.mu.Unlock()
		return
	}
	c.silent = true
	c.joined.Add(1) // Run ends after this
	defer c.joined.Done()
	untaken := c.withdraw()
	c.mu.Unlock()
	if c.fellSilent != nil {
		c.fellSilent()
	}
	for _, q := range untaken {
		q.untaken()
	}
}

// withdraw withdraws the questions that the other end is not known to have taken, and returns them; c.mu is held.
func (c *Conn) withdraw() (untaken []*Delivery) {
	for q := range c.questions {
		if q.after >= c.pongs {
			q.withdrawn = true
			untaken = append(untaken, q)
		}
	}
	return untaken
}

// hushed says whether the other end owes an answer and has not said a word for longer than usual: whoever ends such a connection has noticed that it is gone
// before it was silent for long enough to tell here. c.mu is held.
func (c *Conn) hushed() bool { return c.missed > c.usual && !c.heard }
