package laptop

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
	// queueLength is how many datagrams may wait for a laptop. More are dropped, as a full network
	// would.
	queueLength = 256
	batchSize   = 64 << 10 // bytes that are written at once
	// PongTimeout is how long a laptop may take for a pong, and pingInterval how often it is asked
	// for one.
	pingInterval = 500 * time.Millisecond
	PongTimeout  = 2 * time.Second
	// maxUnanswered bounds the datagram of a flow, in bytes, that is kept until the laptop answers.
	// If the laptop answers that nobody listens there, the app gets the datagram.
	maxUnanswered = 4 << 10
)

var errNoPong = errors.New("the laptop does not answer pings")

// DatagramConfig is what Datagrams need of the UDP port they belong to. C identifies a client.
type DatagramConfig[C comparable] struct {
	Link   *Link
	Strict bool          // the app must not answer instead of the laptop
	Idle   time.Duration // how long a client's flow is remembered
	// Go runs a task that ends at the latest when the context of Send does. The port waits for it.
	Go func(task func())
	// Reply sends a datagram to a client. ToApp gives the app a client's datagram that the laptop
	// did not take.
	Reply func(client C, b []byte)
	ToApp func(ctx context.Context, client C, b []byte)
}

// Datagrams carries the datagrams of one intercept over one relayed connection, which it opens when
// it is needed.
type Datagrams[C comparable] struct {
	config DatagramConfig[C]
	failed atomic.Bool // the last link did

	// mu guards the fields below.
	mu   sync.Mutex
	link *datagramLink[C] // nil while there are no datagrams
}

// NewDatagrams returns Datagrams without a connection. The caller closes it when the intercept
// ends.
func NewDatagrams[C comparable](config DatagramConfig[C]) *Datagrams[C] {
	return &Datagrams[C]{config: config}
}

// Send queues a datagram of a client for the laptop. It returns false if the app has to answer
// instead. ctx bounds the life of the connection that the first Send opens.
func (d *Datagrams[C]) Send(ctx context.Context, client C, b []byte) bool {
	d.mu.Lock()
	if d.link == nil {
		d.link = d.open(ctx)
	}
	l := d.link
	d.mu.Unlock()
	// A laptop that failed before must prove itself while the app answers.
	if !l.opened.Load() && d.failed.Load() && !d.config.Strict {
		return false
	}
	return l.offer(client, b)
}

// Close ends the connection, if there is one. The app gets what is still queued.
func (d *Datagrams[C]) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link != nil {
		d.link.stop()
	}
}

func (d *Datagrams[C]) open(ctx context.Context) *datagramLink[C] {
	now := time.Now()
	l := &datagramLink[C]{
		config: &d.config, queue: make(chan datagram.Frame, queueLength),
		flows: map[uint32]*laptopFlow[C]{}, lastDatagram: now, lastReceived: now,
	}
	l.clients = datagram.NewFlows(d.config.Idle, datagram.MaxFlows, func(_ C, f *laptopFlow[C]) {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.flows, f.number)
	})
	linkCtx, stop := context.WithCancel(ctx)
	l.stop = stop
	d.config.Go(func() {
		defer stop()
		if err := l.run(linkCtx, func() { d.failed.Store(false) }); err != nil && linkCtx.Err() == nil {
			d.onFailure(err)
		}
		d.mu.Lock()
		d.link = nil
		d.mu.Unlock()
		l.end(ctx)
	})
	return l
}

func (d *Datagrams[C]) onFailure(err error) {
	d.failed.Store(true)
	link := d.config.Link
	if errors.Is(err, errNoPong) || errors.Is(err, os.ErrDeadlineExceeded) {
		link.markSilent(&agentv1.RelayHeader{Datagrams: true})
	}
	link.config.Log.Debug("the laptop gets no datagrams", "intercept", link.config.UID, "err", err)
}

// datagramLink is one relayed connection for datagrams.
type datagramLink[C comparable] struct {
	config *DatagramConfig[C]
	queue  chan datagram.Frame
	opened atomic.Bool
	stop   context.CancelFunc
	// clients calls back with its own lock held, and the callbacks take mu: never call it with mu
	// held.
	clients *datagram.Flows[C, *laptopFlow[C]]

	// mu guards the fields below.
	mu           sync.Mutex
	ended        bool
	flows        map[uint32]*laptopFlow[C] // by number
	lastNumber   uint32
	lastDatagram time.Time // in either direction
	lastReceived time.Time // of anything from the laptop
	firstPing    time.Time // the first ping after lastReceived
}

// laptopFlow is the flow of one client on a link.
type laptopFlow[C comparable] struct {
	client     C
	number     uint32
	unanswered []byte // the last datagram, until the laptop answers
}

// offer queues a datagram for the laptop, or drops it if the queue is full. It returns false when
// the link has ended.
func (l *datagramLink[C]) offer(client C, b []byte) bool {
	flow, err := l.clients.Get(client, func() (*laptopFlow[C], error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lastNumber++
		f := &laptopFlow[C]{client: client, number: l.lastNumber}
		l.flows[f.number] = f
		return f, nil
	})
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.lastDatagram = time.Now()
	flow.unanswered = nil
	if len(b) <= maxUnanswered {
		flow.unanswered = slices.Clone(b)
	}
	select {
	case l.queue <- datagram.Frame{Kind: datagram.Data, Flow: flow.number, Payload: slices.Clone(b)}:
	default:
	}
	return true
}

// run opens the connection, calls onOpen and carries frames until the link is idle, the laptop is
// silent, or ctx ends.
func (l *datagramLink[C]) run(ctx context.Context, onOpen func()) error {
	conn, err := l.config.Link.DialDatagrams(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	l.opened.Store(true)
	onOpen()
	received := make(chan error, 1)
	l.config.Go(func() { received <- l.receive(ctx, conn) }) // ends when conn is closed
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	for {
		var batch []byte
		select {
		case err := <-received:
			return err
		case f := <-l.queue:
			batch = l.gather(f)
		case <-ping.C:
			idle, err := l.check()
			if idle || err != nil {
				return err
			}
			batch = datagram.Frame{Kind: datagram.Ping}.Append(nil)
		}
		_ = conn.SetWriteDeadline(time.Now().Add(PongTimeout))
		if _, err := conn.Write(batch); err != nil {
			return err
		}
	}
}

// gather returns the bytes of a frame and of those that are queued behind it.
func (l *datagramLink[C]) gather(first datagram.Frame) []byte {
	batch := first.Append(nil)
	for len(batch) < batchSize {
		select {
		case f := <-l.queue:
			batch = f.Append(batch)
		default:
			return batch
		}
	}
	return batch
}

// check reports whether the link is idle, and fails if the laptop owes a pong for too long.
func (l *datagramLink[C]) check() (idle bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case now.Sub(l.lastDatagram) > datagram.IdleTimeout:
		return true, nil
	case l.firstPing.Before(l.lastReceived):
		l.firstPing = now
	case now.Sub(l.firstPing) > PongTimeout:
		return false, errNoPong
	}
	return false, nil
}

// receive handles the frames of the laptop until the connection ends.
func (l *datagramLink[C]) receive(ctx context.Context, conn net.Conn) error {
	r, buffer := bufio.NewReader(conn), make([]byte, datagram.MaxPayload)
	for {
		f, err := datagram.Read(r, buffer)
		if err != nil {
			return err
		}
		flow, unanswered := l.onFrame(f)
		switch {
		case flow == nil:
		case f.Kind == datagram.Data:
			l.clients.Touch(flow.client)
			l.config.Reply(flow.client, f.Payload)
		case f.Kind == datagram.Refused && !l.config.Strict && unanswered != nil:
			// Nobody listens on the laptop, so the app gets the datagram.
			l.config.ToApp(ctx, flow.client, unanswered)
		}
	}
}

// onFrame notes that the laptop is there. It returns the flow that a frame belongs to, if any, and
// what was unanswered of it.
func (l *datagramLink[C]) onFrame(f datagram.Frame) (flow *laptopFlow[C], unanswered []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	flow, l.lastReceived = l.flows[f.Flow], now
	if flow != nil && f.Kind != datagram.Pong {
		l.lastDatagram = now
		unanswered, flow.unanswered = flow.unanswered, nil
	}
	return flow, unanswered
}

// end gives the app what is still queued.
func (l *datagramLink[C]) end(ctx context.Context) {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	for len(l.queue) > 0 {
		f := <-l.queue
		l.mu.Lock()
		flow := l.flows[f.Flow]
		l.mu.Unlock()
		if flow != nil && !l.config.Strict {
			l.config.ToApp(ctx, flow.client, f.Payload)
		}
	}
	l.clients.Close()
}
