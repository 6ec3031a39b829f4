package mux

import (
	"errors"
	"runtime"
	"sync"
)

const (
	// queueLimit bounds the data that waits for the connection, in bytes: a stream that has more waits.
	queueLimit = 64 << 10
	// answerLimit bounds what waits of the rest: it ends a connection whose other end asks for answers and does not take them.
	answerLimit = 1 << 20
)

var errDeaf = errors.New("the other end asks and does not listen")

// writer is how a Conn writes; Conn.mu guards it. Who has something to say writes it, when nobody else writes; a goroutine writes what has gathered meanwhile.
type writer struct {
	work         chan struct{} // wakes the goroutine
	room         sync.Cond     // signalled when the queue is taken, and when it is written
	queue, spare []byte
	writing      bool // somebody is
	// together says that several streams have heard something at the same time, and will probably say something at the same time.
	together bool
}

// frame queues a frame; c.mu is held.
func (c *Conn) frame(stream uint32, k kind, payload []byte) {
	c.queue = header{stream, k, len(payload)}.append(c.queue)
	c.queue = append(c.queue, payload...)
}

// later has the goroutine write what is queued; c.mu is held.
func (c *Conn) later() {
	if !c.writing { // who writes will look
		tell(c.work)
	}
}

// say queues a frame that is not data.
func (c *Conn) say(stream uint32, k kind, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) > queueLimit+answerLimit {
		return errDeaf
	}
	c.frame(stream, k, payload)
	c.later()
	return nil
}

// flush writes what is queued if nobody else does; c.mu is held, and released meanwhile.
func (c *Conn) flush() {
	if c.writing || c.err != nil {
		return
	}
	c.writing = true
	if c.together {
		// What the others are about to say leaves with it.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.writeQueue()
	if len(c.queue) > 0 || c.over() {
		tell(c.work)
	}
}

// writeQueue writes what is queued, and says then that nobody writes; c.mu is held, and released meanwhile.
func (c *Conn) writeQueue() {
	frames := c.queue
	c.queue, c.spare = c.spare[:0], nil
	c.room.Broadcast()
	c.mu.Unlock()
	var err error
	if len(frames) > 0 {
		_, err = c.conn.Write(frames)
	}
	if err != nil {
		c.fail(err)
	}
	c.mu.Lock()
	c.writing = false
	c.room.Broadcast()
	if cap(frames) <= 2*queueLimit {
		c.spare = frames
	}
}

// write writes what nobody else does, until the end.
func (c *Conn) write() {
	for {
		select {
		case <-c.done:
			return
		case <-c.work:
		}
		c.mu.Lock()
		for !c.writing && len(c.queue) > 0 && c.err == nil {
			c.writing = true
			c.writeQueue()
		}
		over := c.over() && !c.writing
		c.mu.Unlock()
		if over {
			c.fail(nil)
		}
	}
}

func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
