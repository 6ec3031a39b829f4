package agent

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/detour-dev/detour/pkg/relay/datagram"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// linkQueue is how many datagrams may wait for a laptop; more are dropped, as a full network would.
	linkQueue = 256
	linkBatch = 64 << 10
	// linkPing is how often a laptop is asked whether it is there, linkSilence how long it may say nothing to that.
	linkPing    = 500 * time.Millisecond
	linkSilence = 2 * time.Second
	// keptDatagram bounds what is kept of a flow in case that nobody listens on the laptop, in bytes.
	keptDatagram = 4 << 10
)

var errSilent = errors.New("the laptop is silent")

// datagramLink carries the datagrams of an intercept over one relayed connection.
type datagramLink struct {
	port    *datagrams
	of      *target
	queue   chan datagram.Frame
	opened  atomic.Bool
	stop    context.CancelFunc
	clients *datagram.Flows[udpClient, *linkedClient]

	mu      sync.Mutex
	over    bool
	numbers map[uint32]*linkedClient
	next    uint32
	used    time.Time // when a datagram last went either way
	heard   time.Time // when the laptop last said anything
	asked   time.Time // when it was asked first since
}

// linkedClient is a client's flow on a link.
type linkedClient struct {
	udpClient
	number     uint32
	unanswered []byte // the last one, until something comes back
}

// toLaptop hands a datagram to the laptop of an intercept. It says no where the app has to answer instead.
func (d *datagrams) toLaptop(ctx context.Context, t *target, client udpClient, b []byte) bool {
	t.linkMu.Lock()
	if t.link == nil {
		t.link = d.newLink(ctx, t)
	}
	l := t.link
	t.linkMu.Unlock()
	// Whoever failed before is not waited for.
	if !l.opened.Load() && t.failed.Load() && !t.ErrorOnFailure {
		return false
	}
	return l.offer(client, b)
}

// closeLink ends what carries the datagrams of an intercept that is over.
func (t *target) closeLink() {
	t.linkMu.Lock()
	defer t.linkMu.Unlock()
	if t.link != nil {
		t.link.stop()
	}
}

func (d *datagrams) newLink(ctx context.Context, t *target) *datagramLink {
	now := time.Now()
	l := &datagramLink{port: d, of: t, queue: make(chan datagram.Frame, linkQueue), numbers: map[uint32]*linkedClient{}, used: now, heard: now}
	l.clients = datagram.NewFlows(d.idle, datagram.MaxFlows, func(_ udpClient, c *linkedClient) {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.numbers, c.number)
	})
	linked, stop := context.WithCancel(ctx)
	l.stop = stop
	d.running.Go(func() {
		defer stop()
		if err := l.run(linked); err != nil && linked.Err() == nil {
			t.failed.Store(true)
			if errors.Is(err, errSilent) || errors.Is(err, os.ErrDeadlineExceeded) {
				d.agent.leaveOut(t, &agentv1.RelayHeader{Datagrams: true})
			}
			d.agent.log.Debug("the laptop gets no datagrams", "intercept", t.Uid, "err", err)
		}
		t.linkMu.Lock()
		t.link = nil
		t.linkMu.Unlock()
		l.end(ctx)
	})
	return l
}

// offer queues a datagram for the laptop, or drops it. It says no when the link is over.
func (l *datagramLink) offer(client udpClient, b []byte) bool {
	c, err := l.clients.Get(client, func() (*linkedClient, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.next++
		c := &linkedClient{udpClient: client, number: l.next}
		l.numbers[c.number] = c
		return c, nil
	})
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.used = time.Now()
	c.unanswered = nil
	if len(b) <= keptDatagram {
		c.unanswered = slices.Clone(b)
	}
	select {
	case l.queue <- datagram.Frame{Kind: datagram.Data, Flow: c.number, Payload: slices.Clone(b)}:
	default:
	}
	return true
}

// run opens the relayed connection and carries frames until it is idle, the laptop is silent, or ctx ends.
func (l *datagramLink) run(ctx context.Context) error {
	conn, err := l.port.agent.openLaptop(ctx, l.of, &agentv1.RelayHeader{Datagrams: true})
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	l.opened.Store(true)
	l.of.failed.Store(false)
	received := make(chan error, 1)
	l.port.running.Go(func() { received <- l.receive(ctx, conn) })
	tick := time.NewTicker(linkPing)
	defer tick.Stop()
	for {
		var batch []byte
		select {
		case err := <-received:
			return err
		case f := <-l.queue:
			batch = f.Append(nil)
			for more := true; more && len(batch) < linkBatch; {
				select {
				case f := <-l.queue:
					batch = f.Append(batch)
				default:
					more = false
				}
			}
		case <-tick.C:
			idle, err := l.check()
			if idle || err != nil {
				return err
			}
			batch = datagram.Frame{Kind: datagram.Ping}.Append(nil)
		}
		_ = conn.SetWriteDeadline(time.Now().Add(linkSilence))
		if _, err := conn.Write(batch); err != nil {
			return err
		}
	}
}

// check says whether the link is not used any more, and fails when the laptop does not answer.
func (l *datagramLink) check() (idle bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case now.Sub(l.used) > datagram.IdleTimeout:
		return true, nil
	case l.asked.Before(l.heard):
		l.asked = now
	case now.Sub(l.asked) > linkSilence:
		return false, errSilent
	}
	return false, nil
}

// receive takes what comes from the laptop.
func (l *datagramLink) receive(ctx context.Context, conn net.Conn) error {
	r, buffer := bufio.NewReader(conn), make([]byte, datagram.MaxPayload)
	for {
		f, err := datagram.Read(r, buffer)
		if err != nil {
			return err
		}
		l.mu.Lock()
		c, now := l.numbers[f.Flow], time.Now()
		l.heard = now
		var again []byte
		if c != nil && f.Kind != datagram.Pong {
			l.used = now
			again, c.unanswered = c.unanswered, nil
		}
		l.mu.Unlock()
		switch {
		case c == nil:
		case f.Kind == datagram.Data:
			l.clients.Touch(c.udpClient)
			l.port.answer(c.udpClient, f.Payload)
		case f.Kind == datagram.Refused && !l.of.ErrorOnFailure:
			// Nobody listens on the laptop: nothing of it is lost.
			if again != nil {
				l.port.toApp(ctx, c.udpClient, again)
			}
		}
	}
}

// end leaves what is still queued to the app.
func (l *datagramLink) end(ctx context.Context) {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	for len(l.queue) > 0 {
		f := <-l.queue
		l.mu.Lock()
		c := l.numbers[f.Flow]
		l.mu.Unlock()
		if c != nil && !l.of.ErrorOnFailure {
			l.port.toApp(ctx, c.udpClient, f.Payload)
		}
	}
	l.clients.Close()
}
