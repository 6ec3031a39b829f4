package badnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A pipe holds at most depth pieces of at most piece bytes: 4 MiB. A sender that is faster than the
// network then has to wait, as it would for a full window.
const (
	piece = 8 << 10
	depth = 512
)

// pair is one relayed connection: that of the client and that to the target.
type pair struct {
	ctx  context.Context // ends with the pair
	stop context.CancelFunc

	mu             sync.Mutex
	client, target *net.TCPConn
	over           bool
}

func newPair(ctx context.Context, client *net.TCPConn) *pair {
	ctx, stop := context.WithCancel(ctx)
	return &pair{ctx: ctx, stop: stop, client: client}
}

// attach adds the connection to the target, and gives false when the pair was reset meanwhile.
func (p *pair) attach(target *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		hangUp(target)
		return false
	}
	p.target = target
	return true
}

// reset ends both connections with a RST.
func (p *pair) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(hangUp)
}

// end closes both connections; when all is written that is a normal end.
func (p *pair) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(func(c *net.TCPConn) { _ = c.Close() })
}

func (p *pair) finish(closeOne func(*net.TCPConn)) {
	if p.over {
		return
	}
	p.over = true
	p.stop()
	closeOne(p.client)
	if p.target != nil {
		closeOne(p.target)
	}
}

func hangUp(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// ending is how a stream ends, if it does.
type ending int

const (
	goesOn ending = iota
	finished
	aborted
)

// parcel is some bytes on their way, or the end of the stream.
type parcel struct {
	arrival time.Time
	data    []byte
	ending  ending
}

// pipe is one direction of a pair.
type pipe struct {
	pair     *pair
	from, to *net.TCPConn
	link     *link
	weather  *weather
	queue    chan parcel
	written  chan struct{} // closed when nothing will be written any more
}

func newPipe(p *pair, from, to *net.TCPConn, l *link, w *weather) *pipe {
	return &pipe{
		pair: p, from: from, to: to, link: l, weather: w, queue: make(chan parcel, depth),
		written: make(chan struct{}),
	}
}

// read takes what one side sends. It goes on while the network is stalled, until the pipe is full.
func (p *pipe) read() {
	buffer := make([]byte, piece)
	for {
		n, err := p.from.Read(buffer)
		if n > 0 && !p.put(parcel{data: bytes.Clone(buffer[:n])}) {
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			p.put(parcel{ending: finished})
			return
		case err != nil:
			p.put(parcel{ending: aborted})
			return
		}
	}
}

func (p *pipe) put(what parcel) bool {
	what.arrival = p.link.arrival()
	select {
	case p.queue <- what:
		return true
	case <-p.pair.ctx.Done():
		return false
	}
}

// write gives the other side what arrives. When that side does not take it any more, the pair is
// reset, but not before what it said last has gone back.
func (p *pipe) write(back *pipe) {
	done := p.pair.ctx.Done()
	end := p.deliver(done)
	close(p.written)
	if end == finished {
		return
	}
	if end == goesOn {
		select {
		case <-back.written:
		case <-done:
		}
	}
	p.pair.reset()
}

// deliver writes until the stream ends, and says how; goesOn when it has not ended but cannot be
// written.
func (p *pipe) deliver(done <-chan struct{}) ending {
	for {
		var what parcel
		select {
		case what = <-p.queue:
		case <-done:
			return aborted
		}
		if !sleepUntil(what.arrival, done) || !p.link.send(len(what.data), done) || !p.weather.wait(done) {
			return aborted
		}
		switch what.ending {
		case finished:
			_ = p.to.CloseWrite()
			return finished
		case aborted:
			return aborted
		}
		if _, err := p.to.Write(what.data); err != nil {
			return goesOn
		}
	}
}

func sleepUntil(t time.Time, done <-chan struct{}) bool {
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}
