package mux

import (
	"errors"
	"runtime"
	"sync"
)

const (
	// queueLimit bounds the data that waits for the connection, in bytes: a stream with more to
	// send waits.
	queueLimit = 64 << 10
	// controlLimit bounds the other frames that wait, in bytes. It ends a connection whose peer
	// causes answers and does not read them.
	controlLimit = 1 << 20
)

var errNotReading = errors.New("the peer does not read the answers that it causes")

// Shared writes.
//
// A stream that sends something writes it itself, unless somebody else writes: then its frames wait
// in the queue and leave together with the others' in the next write, by a goroutine. After a read
// that had something for several streams, the first of them to answer lets the others run
// (runtime.Gosched), so that their answers leave in the same write.
//
// Gain: 2.6 messages a write; with streams as a whole, manager, agent and daemon together needed 66
// to 72 µs of processor time for a request on 16 connections, 108 to 131 before. Cost: none for a
// stream that is alone, but 5 to 15 % more for a byte of bulk. Measured in the laboratory
// (docs/design/performance-log.md); BenchmarkManyStreams compares writing with and without the
// yield.

// writer is the state of writing. Conn.mu guards it.
type writer struct {
	wake         chan struct{} // wakes the goroutine
	room         sync.Cond     // signalled when the queue is taken, and when it is written
	queue, spare []byte
	busy         bool // somebody writes
	// yield is set when several streams have received something in the last read, and will probably
	// answer at the same time.
	yield      bool
	neverYield bool // for the benchmark
}

// queueLocked queues a frame.
func (c *Conn) queueLocked(stream uint32, k kind, payload []byte) {
	c.w.queue = header{stream, k, len(payload)}.append(c.w.queue)
	c.w.queue = append(c.w.queue, payload...)
}

// wakeWriterLocked has the goroutine write what is queued.
func (c *Conn) wakeWriterLocked() {
	if !c.w.busy { // otherwise the one that writes wakes it
		signal(c.w.wake)
	}
}

// sendControl queues a frame that is not data.
func (c *Conn) sendControl(stream uint32, k kind, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.w.queue) > queueLimit+controlLimit {
		return errNotReading
	}
	c.queueLocked(stream, k, payload)
	c.wakeWriterLocked()
	return nil
}

// flushLocked writes what is queued unless somebody else writes. It releases the lock meanwhile.
func (c *Conn) flushLocked() {
	if c.w.busy || c.err != nil {
		return
	}
	c.w.busy = true
	if c.w.yield && !c.w.neverYield {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.writeQueueLocked()
	if len(c.w.queue) > 0 || c.unusedLocked() {
		signal(c.w.wake)
	}
}

// writeQueueLocked writes what is queued, and clears busy. It releases the lock meanwhile.
func (c *Conn) writeQueueLocked() {
	frames := c.w.queue
	c.w.queue, c.w.spare = c.w.spare[:0], nil
	c.w.room.Broadcast()
	c.mu.Unlock()
	var err error
	if len(frames) > 0 {
		_, err = c.conn.Write(frames)
	}
	if err != nil {
		c.fail(err)
	}
	c.mu.Lock()
	c.w.busy = false
	c.w.room.Broadcast()
	if cap(frames) <= 2*queueLimit {
		c.w.spare = frames
	}
}

// writeLoop writes what no stream writes itself, until the connection ends.
func (c *Conn) writeLoop() {
	for {
		select {
		case <-c.done:
			return
		case <-c.w.wake:
		}
		c.mu.Lock()
		for !c.w.busy && len(c.w.queue) > 0 && c.err == nil {
			c.w.busy = true
			c.writeQueueLocked()
		}
		unused := c.unusedLocked() && !c.w.busy
		c.mu.Unlock()
		if unused {
			c.fail(nil)
		}
	}
}

// signal wakes the goroutine that receives from c, now or when it next does.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
