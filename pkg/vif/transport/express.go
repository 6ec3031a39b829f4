package transport

import (
	"time"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// A stream keeps the order of everything, and that includes all data queued in the kernels and the
// API server on the way: megabytes of bulk, which take seconds on a slow line. So a laptop whose
// path is a stream opens a second one beside it, the express stream, for the packets of flows that
// send little (tundev.Classifier tells them apart).
//
// The express stream belongs to its parent stream: WireGuard sees one endpoint, and the express
// stream ends with its parent. While it is missing or silent, all messages go on the parent. A
// stream becomes an express stream by a probe that says so, and only the laptop can seal that
// probe.
//
// Gain: the latency of small requests beside bulk over a stream. Cost: a second stream to each
// laptop. The figures are in docs/design/performance-log.md.
//
// expressAfter is how long a stream is the path before it gets an express stream. Most laptops have
// found a direct path by then.
const expressAfter = time.Second

// WantsExpress reports whether a stream has been the path for a moment, and the hub knows express
// streams.
func (ps *PathSelector) WantsExpress(parent *StreamWire) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.active.Load()
	return !ps.noExpress && p != nil && p.Wire == Wire(parent) && p.knowsExpress && time.Since(ps.since) > expressAfter
}

// expressAnsweredLocked begins to use an express stream, or goes on using it.
func (ps *PathSelector) expressAnsweredLocked(p *path, pong Probe) {
	if pong.Features&FeatureExpress != 0 && pong.Instance == ps.instance {
		p.parent.express.Store(p.Wire.(*StreamWire))
	}
}

// expressSilentLocked stops using an express stream that does not answer.
func (ps *PathSelector) expressSilentLocked(p *path) {
	p.parent.express.CompareAndSwap(p.Wire.(*StreamWire), nil)
}

// sendClassified sends each message on the stream or on its express stream.
func (s *StreamWire) sendClassified(messages [][]byte) error {
	express := s.express.Load()
	if express == nil {
		return s.Send(messages)
	}
	var expressArray, bulkArray [packet.BatchSize][]byte
	urgent, bulk := expressArray[:0], bulkArray[:0]
	for _, m := range messages {
		if packet.IsBulk(m) {
			bulk = append(bulk, m)
		} else {
			urgent = append(urgent, m)
		}
	}
	if len(urgent) > 0 && express.Send(urgent) != nil {
		if err := s.Send(urgent); err != nil {
			return err
		}
	}
	if len(bulk) == 0 {
		return nil
	}
	return s.Send(bulk)
}

// endpoint is the endpoint that WireGuard is to answer to.
func (s *StreamWire) endpoint() *StreamWire {
	if parent := s.parent.Load(); parent != nil {
		return parent
	}
	return s
}

// unlink separates a stream that ended from its express stream or parent. The hub ends an express
// stream with its parent, as the laptop does.
func (s *StreamWire) unlink() {
	if parent := s.parent.Load(); parent != nil {
		parent.express.CompareAndSwap(s, nil)
	}
	if express := s.express.Swap(nil); express != nil {
		express.Close()
	}
}
