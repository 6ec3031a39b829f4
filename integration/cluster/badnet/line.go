package badnet

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

const (
	// lineMTU is that of most networks.
	lineMTU = 1500
	// lineOffset leaves room before a packet for the header that a TUN's driver writes there.
	lineOffset = 16
)

// Line is a link between two network namespaces that carries whole packets, whatever is in them:
// TCP sees its losses and its delay as they are. All methods may be called at any time, from any
// goroutine.
type Line struct {
	ends    [2]tun.Device
	ways    [2]*way
	stop    context.CancelFunc
	running sync.WaitGroup
}

// NewLine makes an interface of that name in each of two namespaces; in and out run a function in
// one of them. The interfaces have no addresses and no routes, and go with Close.
func NewLine(ctx context.Context, name string, in, out func(func() error) error) (*Line, error) {
	l := &Line{}
	for i, inside := range []func(func() error) error{in, out} {
		err := inside(func() (err error) {
			l.ends[i], err = tun.CreateTUN(name, lineMTU)
			return err
		})
		if err != nil {
			if i == 1 {
				_ = l.ends[0].Close()
			}
			return nil, fmt.Errorf("make an end of the line %s: %w", name, err)
		}
	}
	ctx, l.stop = context.WithCancel(ctx)
	for i := range l.ways {
		from, to := l.ends[i], l.ends[1-i]
		l.ways[i] = &way{queue: make(chan parcelled, inFlight)}
		l.running.Go(func() { l.ways[i].take(from) })
		l.running.Go(func() { l.ways[i].give(ctx, to) })
		l.running.Go(func() {
			for range from.Events() { // its driver waits for somebody who hears them
			}
		})
	}
	return l, nil
}

// Set makes a round trip take delay, each direction carry so many bits a second, hold back what it
// cannot carry for at most queue, and lose that share of the packets. A rate of 0 is no limit.
func (l *Line) Set(delay time.Duration, bitsPerSecond int64, queue time.Duration, loss float64) {
	for _, w := range l.ways {
		w.mu.Lock()
		w.delay, w.rate, w.backlog, w.loss, w.free = delay/2, bitsPerSecond, queue, loss, time.Time{}
		w.mu.Unlock()
	}
}

// Close takes the interfaces away and returns when nothing runs any more.
func (l *Line) Close() {
	l.stop()
	for _, e := range l.ends {
		_ = e.Close()
	}
	l.running.Wait()
}

// way is one direction of a Line.
type way struct {
	mu      sync.Mutex
	delay   time.Duration
	rate    int64
	backlog time.Duration
	loss    float64
	free    time.Time // when all is sent that was taken
	queue   chan parcelled
}

// parcelled is a packet on its way, with room before it.
type parcelled struct {
	arrival time.Time
	packet  []byte
}

func (w *way) take(from tun.Device) {
	n := from.BatchSize()
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, lineOffset+64<<10)
	}
	for {
		n, err := from.Read(bufs, sizes, lineOffset)
		if err != nil {
			return
		}
		for i := range n {
			w.carry(bufs[i][lineOffset : lineOffset+sizes[i]])
		}
	}
}

// carry takes a packet, or loses it.
func (w *way) carry(packet []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.free.Before(now) {
		w.free = now
	}
	if rand.Float64() < w.loss || w.rate > 0 && w.free.Sub(now) > w.backlog {
		return
	}
	if w.rate > 0 {
		w.free = w.free.Add(time.Duration(float64(len(packet)) * 8 / float64(w.rate) * float64(time.Second)))
	}
	select {
	case w.queue <- parcelled{w.free.Add(w.delay), append(make([]byte, lineOffset, lineOffset+len(packet)), packet...)}:
	default:
	}
}

func (w *way) give(ctx context.Context, to tun.Device) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-w.queue:
			if !sleepUntil(p.arrival, ctx.Done()) {
				return
			}
			if _, err := to.Write([][]byte{p.packet}, lineOffset); err != nil {
				slog.Debug("a packet was lost at the end of the line", "err", err)
			}
		}
	}
}
