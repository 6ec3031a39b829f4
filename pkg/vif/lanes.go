package vif

import (
	"context"
	"errors"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
)

// A stream keeps everything in order, also what waits in the kernels and the API server on the way: megabytes of bulk, seconds on a slow
// line. So a laptop whose path is a stream opens a second one beside it, the express lane, for the packets of flows that send little
// (see sorter). The lane belongs to its stream: WireGuard sees one endpoint, and the lane ends with the stream. While it is not there, or
// silent, all goes on the stream. A stream becomes a lane by a probe that says so, which nobody but the laptop can seal.
const (
	// laneAfter is how long a stream is the path before it gets a lane: most laptops have found a direct path by then.
	laneAfter = time.Second
	// laneCheck is how often it is looked whether a lane is wanted. One that failed is opened again after laneMin, and later and later.
	laneCheck        = 250 * time.Millisecond
	laneMin, laneMax = time.Second, 30 * time.Second
)

var errUnwanted = errors.New("another path is in use")

// keepLane keeps a lane open beside a stream while one is wanted.
func (i *Interface) keepLane(ctx context.Context, of *stream, open func(context.Context) (Stream, error)) {
	backoff := netx.Backoff{Min: laneMin, Max: laneMax}
	for wait := laneCheck; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = laneCheck
		if !i.ladder.wantsLane(of) {
			continue
		}
		opened := time.Now()
		lane, err := open(ctx)
		if err == nil {
			err = i.carry(ctx, lane, func(s *stream) (end func()) {
				remove := i.ladder.add(&way{wire: s, of: of})
				return func() { remove(); of.lane.CompareAndSwap(s, nil) }
			}, func(s *stream) error {
				if !i.ladder.wantsLane(of) {
					return errUnwanted
				}
				return i.silent(s)
			})
		}
		if ctx.Err() != nil || errors.Is(err, errUnwanted) {
			continue
		}
		if time.Since(opened) > laneMax {
			backoff.Reset()
		}
		wait = backoff.Next()
		i.log.Debug("the express lane ended", "err", err, "another in", wait)
	}
}

// wantsLane says whether a stream is the path, has been it for a moment, and the hub knows lanes.
func (l *ladder) wantsLane(of *stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.active.Load()
	return w != nil && w.wire == wire(of) && w.lanes && time.Since(l.since) > laneAfter
}

// laneAnswered begins to use a lane, or goes on; l.mu is held.
func (l *ladder) laneAnswered(w *way, says probe) {
	if says.takes&takesLanes != 0 && says.instance == l.instance {
		w.of.lane.Store(w.wire.(*stream))
	}
}

// laneSilent stops using a lane that does not answer; l.mu is held.
func (l *ladder) laneSilent(w *way) { w.of.lane.CompareAndSwap(w.wire.(*stream), nil) }

// joinLane makes one stream of a laptop's the express lane of another; the hub's mu is held.
func (p *peerState) joinLane(lane, of *stream) (joined bool) {
	if of == nil || of == lane {
		return false
	}
	lane.of.Store(of)
	of.lane.Store(lane)
	p.lanePinged = p.pinged
	return true
}

// sendInLanes sends each message on the stream or on its lane.
func (s *stream) sendInLanes(messages [][]byte) error {
	lane := s.lane.Load()
	if lane == nil {
		return s.send(messages)
	}
	var express, bulk [batch][]byte
	e, b := express[:0], bulk[:0]
	for _, m := range messages {
		if isBulk(m) {
			b = append(b, m)
		} else {
			e = append(e, m)
		}
	}
	if len(e) > 0 && lane.send(e) != nil {
		if err := s.send(e); err != nil {
			return err
		}
	}
	if len(b) == 0 {
		return nil
	}
	return s.send(b)
}

// endpoint is what WireGuard shall answer to.
func (s *stream) endpoint() *stream {
	if of := s.of.Load(); of != nil {
		return of
	}
	return s
}

// leave takes a stream that ended out of its pair. The hub ends the lane with its stream, as the laptop does.
func (s *stream) leave() {
	if of := s.of.Load(); of != nil {
		of.lane.CompareAndSwap(s, nil)
	}
	if lane := s.lane.Swap(nil); lane != nil {
		lane.close()
	}
}
