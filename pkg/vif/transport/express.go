package transport

import (
	"time"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// A stream keeps everything in order, also what waits in the kernels and the API server on the way: megabytes of bulk, seconds on a slow
// line. So a laptop whose path is a stream opens a second one beside it, the express lane, for the packets of flows that send little
// (see sorter). The lane belongs to its stream: WireGuard sees one endpoint, and the lane ends with the stream. While it is not there, or
// silent, all goes on the stream. A stream becomes a lane by a probe that says so, which nobody but the laptop can seal.
// laneAfter is how long a stream is the path before it gets a lane: most laptops have found a direct path by then.
const expressAfter = time.Second

// wantsLane says whether a stream is the path, has been it for a moment, and the hub knows lanes.
func (l *PathSelector) WantsExpress(of *StreamWire) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.active.Load()
	return !l.noExpress && w != nil && w.Wire == Wire(of) && w.knowsExpress && time.Since(l.since) > expressAfter
}

// laneAnswered begins to use a lane, or goes on; l.mu is held.
func (l *PathSelector) expressAnsweredLocked(w *path, says Probe) {
	if says.Features&FeatureExpress != 0 && says.Instance == l.instance {
		w.parent.express.Store(w.Wire.(*StreamWire))
	}
}

// laneSilent stops using a lane that does not answer; l.mu is held.
func (l *PathSelector) expressSilentLocked(w *path) {
	w.parent.express.CompareAndSwap(w.Wire.(*StreamWire), nil)
}

// sendInLanes sends each message on the stream or on its lane.
func (s *StreamWire) sendClassified(messages [][]byte) error {
	lane := s.express.Load()
	if lane == nil {
		return s.Send(messages)
	}
	var express, bulk [packet.BatchSize][]byte
	e, b := express[:0], bulk[:0]
	for _, m := range messages {
		if packet.IsBulk(m) {
			b = append(b, m)
		} else {
			e = append(e, m)
		}
	}
	if len(e) > 0 && lane.Send(e) != nil {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	if len(b) == 0 {
		return nil
	}
	return s.Send(b)
}

// endpoint is what WireGuard shall answer to.
func (s *StreamWire) endpoint() *StreamWire {
	if of := s.parent.Load(); of != nil {
		return of
	}
	return s
}

// leave takes a stream that ended out of its pair. The hub ends the lane with its stream, as the laptop does.
func (s *StreamWire) unlink() {
	if of := s.parent.Load(); of != nil {
		of.express.CompareAndSwap(s, nil)
	}
	if lane := s.express.Swap(nil); lane != nil {
		lane.Close()
	}
}
