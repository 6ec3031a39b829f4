// Package report gathers what the traffic-manager is told about requests: where each went, for
// those who tail a port, and how many copies of requests were lost. It costs nothing while nobody
// tails and no copy is lost.
//
// Start with Report. A Request follows one request to its end.
package report

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// MaxRouted is how many routed requests wait to be sent. More are only counted.
	MaxRouted = 512
	// MaxPath bounds the path of a request that is sent, in bytes.
	MaxPath = 512
	// sendInterval gathers what happens within it. DroppedInterval does so for the counts of lost
	// copies, which end in the status of an object.
	sendInterval    = 100 * time.Millisecond
	DroppedInterval = 3 * time.Second
)

// Report gathers what the manager is told. It is safe for concurrent use.
type Report struct {
	wake chan struct{} // has an element when there is something to send

	// mu guards the fields below.
	mu          sync.Mutex
	routed      []*agentv1.Routed
	missed      uint64            // requests beyond MaxRouted
	dropped     map[string]uint64 // lost copies by intercept
	sentDropped map[string]uint64 // what the manager knows of dropped
	sentAt      time.Time
}

// New returns an empty Report.
func New() *Report { return &Report{dropped: map[string]uint64{}, wake: make(chan struct{}, 1)} }

func (r *Report) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Add adds a request that has ended.
func (r *Report) Add(m *agentv1.Routed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.routed) < MaxRouted {
		r.routed = append(r.routed, m)
	} else {
		r.missed++
	}
	r.wakeUp()
}

// Drop counts n copies that the laptop of an intercept does not get.
func (r *Report) Drop(intercept string, n uint64) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped[intercept] += n
	r.wakeUp()
}

// Dropped returns how many copies the laptop of an intercept did not get.
func (r *Report) Dropped(intercept string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped[intercept]
}

// Forget forgets the count of an intercept that has ended.
func (r *Report) Forget(intercept string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.dropped, intercept)
}

// Take removes and returns what is to be sent at a time, or nil. It reports whether something has
// to wait for later.
func (r *Report) Take(now time.Time) (m *agentv1.Report, later bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m = &agentv1.Report{Routed: r.routed, Missed: r.missed}
	r.routed, r.missed = nil, 0
	if later = !maps.Equal(r.dropped, r.sentDropped); later && now.Sub(r.sentAt) >= DroppedInterval {
		later, r.sentAt, r.sentDropped = false, now, maps.Clone(r.dropped)
		m.Dropped = r.sentDropped
	}
	if len(m.Routed) == 0 && m.Missed == 0 && m.Dropped == nil {
		return nil, later
	}
	return m, later
}

// Run sends reports to one manager until ctx ends or send fails. A manager that is new gets all
// counts of lost copies.
func (r *Report) Run(ctx context.Context, send func(*agentv1.Report) error) {
	r.mu.Lock()
	r.sentDropped, r.sentAt = nil, time.Time{}
	r.mu.Unlock()
	pause := time.NewTimer(0)
	defer pause.Stop()
	later := true
	for {
		if !later {
			select {
			case <-ctx.Done():
				return
			case <-r.wake:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		var m *agentv1.Report
		if m, later = r.Take(time.Now()); m != nil && send(m) != nil {
			return
		}
		pause.Reset(sendInterval)
	}
}

// Request follows one request to its end. All methods do nothing on a nil Request: nobody tails the
// port.
type Request struct {
	routed *agentv1.Routed
	report *Report
	start  time.Time
	once   sync.Once
}

// Follow begins to follow a request, or a connection that is not HTTP if method is empty.
func (r *Report) Follow(port uint16, method, target string) *Request {
	now := time.Now()
	return &Request{report: r, start: now, routed: &agentv1.Routed{
		AtUnixMicro: now.UnixMicro(), Port: uint32(port), Method: method, Path: pathOf(target),
	}}
}

// pathOf returns the path of a request target, without the query and other parts that may be
// secret.
func pathOf(target string) string {
	path, _, _ := strings.Cut(target, "?")
	path, _, _ = strings.Cut(path, "#")
	if _, rest, ok := strings.Cut(path, "://"); ok && path[0] != '/' { // a whole URL, as proxies get it
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	return strings.ToValidUTF8(path[:min(len(path), MaxPath)], "�")
}

// SetOwner notes the intercept that takes the request; empty for none.
func (q *Request) SetOwner(intercept string) {
	if q != nil && intercept != "" {
		q.routed.InterceptUid = intercept
	}
}

// SetLaptop notes whether the laptop of the owner gets the request, or the app does.
func (q *Request) SetLaptop(laptop bool) {
	switch {
	case q == nil:
	case laptop:
		q.routed.Way = agentv1.Way_WAY_LAPTOP
	default:
		q.routed.Way = agentv1.Way_WAY_APP
	}
}

// AddCopy notes an intercept that gets a copy.
func (q *Request) AddCopy(intercept string) {
	if q != nil {
		q.routed.Copied = append(q.routed.Copied, intercept)
	}
}

// SetStatus notes the status of the answer.
func (q *Request) SetStatus(status int) {
	if q != nil {
		q.routed.Status = uint32(status)
	}
}

// SetGRPCStatus notes the status of a gRPC call.
func (q *Request) SetGRPCStatus(code uint32) {
	if q != nil {
		q.routed.GrpcStatus = &code
	}
}

// End adds the request to its report, the first time.
func (q *Request) End() {
	if q == nil {
		return
	}
	q.once.Do(func() {
		q.routed.DurationMicros = time.Since(q.start).Microseconds()
		q.report.Add(q.routed)
	})
}
