package raw

import (
	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/replay"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

// opening is what a client said first to a laptop, until the laptop answers. Conn.mu guards it.
type opening struct {
	replay.Buffer
	up       *upstream.Upstream
	delivery *mux.Delivery // nil if nothing has to be kept
}

// beginLocked keeps what the upstream is about to get, if it is a laptop that may not take it.
func (o *opening) beginLocked(up *upstream.Upstream) {
	if s := laptop.StreamOf(up.Conn); s != nil {
		*o = opening{up: up, delivery: s.Track(func() { _ = s.Abort() })}
	}
}

func (o *opening) keepLocked(up *upstream.Upstream, b []byte) {
	if o.delivery != nil && o.up == up {
		o.Keep(b)
	}
}

// answeredLocked notes that the upstream answers. It returns false if it is too late, because the
// app gets what was kept.
func (o *opening) answeredLocked() bool {
	if o.delivery == nil {
		return true
	}
	if !o.delivery.Done() {
		return false
	}
	*o = opening{}
	return true
}

// lostLocked reports whether the upstream, which has ended, has not taken what was kept.
func (o *opening) lostLocked(up *upstream.Upstream) bool {
	return o.up == up && o.delivery != nil && !o.delivery.Done()
}
