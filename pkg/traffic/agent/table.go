package agent

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/passthrough"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// table is what is in force on a port.
type table struct {
	global *target // takes everything that is nobody's; nil when there is none
	// datagrams takes those of the UDP port with the number; nil when nothing does.
	datagrams *target
	personal  []*target // most specific first
	taps      []*target // get copies
	tailed    bool      // somebody wants to see the requests
	probed    bool      // the kubelet's requests are among the others, and the app's
}

// target is an intercept in force. The token and address of its Intercept are those that it began with: laptop has the present
// ones.
type target struct {
	*agentv1.Intercept
	match      *route.Match    // nil for a global one
	ctx        context.Context // ends with the intercept
	end        context.CancelFunc
	laptop     *laptop.Link
	plainUntil atomic.Int64 // Unix nanoseconds: its process does not speak TLS
}

func (a *agent) newTarget(i *agentv1.Intercept) *target {
	t := &target{Intercept: i}
	t.ctx, t.end = context.WithCancel(a.life)
	t.laptop = laptop.New(t.ctx, laptop.Config{UID: i.Uid, TLS: a.tls, Log: a.log, Go: a.conns.Go, OnReachable: a.tellChanged})
	return t
}

// same reports whether i is the same intercept, however its laptop is reached.
func (t *target) same(i *agentv1.Intercept) bool {
	now := t.current()
	now.Token, now.RelayAddress = i.Token, i.RelayAddress
	return proto.Equal(now, i)
}

// current returns the intercept as the manager would send it now.
func (t *target) current() *agentv1.Intercept {
	i, access := proto.CloneOf(t.Intercept), t.laptop.Access()
	i.Token, i.RelayAddress = access.Token, access.Address
	return i
}

// out reports whether the app has to answer in place of a laptop that did not answer lately.
func (t *target) out() bool { return !t.ErrorOnFailure && !t.laptop.Reachable() }

func (a *agent) table(port uint16) *table { return (*a.tables.Load())[port] }

// owner says whose it is what begins now on a port.
func (a *agent) owner(port uint16) passthrough.Owner {
	t := a.table(port)
	switch {
	case t == nil && a.leaving():
		return passthrough.ByRequest
	case t == nil:
		return passthrough.App
	case t.tailed || t.global != nil && !t.global.out():
		return passthrough.Elsewhere
	case t.byRequest():
		return passthrough.ByRequest
	default:
		return passthrough.App
	}
}

// choice is what the intercepts in force make of a request.
type choice struct {
	owner  *target   // the intercept that takes the request; nil for none
	laptop *target   // owner, unless the app has to answer in its place
	taps   []*target // get a copy
}

// chooseEarly tells the passthrough what becomes of a request, and whether the app alone gets it. While the pod ends it never does,
// because each answer has to say so, which the passthrough cannot.
func (a *agent) chooseEarly(port uint16, h *http1.Head) (chosen any, app bool) {
	c := a.choose(port, requestOf(h))
	if c.laptop == nil && len(c.taps) == 0 && !a.podEnding.Load() {
		return nil, true
	}
	return c, false
}

// requestOf returns what a match looks at of a request.
func requestOf(h *http1.Head) *route.Request {
	return &route.Request{Method: h.Method, Target: h.Target, Values: h.Values}
}

// personal says whether a port has to be looked at request by request.
func (a *agent) personal(port uint16) bool {
	t := a.table(port)
	return t != nil && t.byRequest() || t == nil && a.leaving()
}

func (t *table) byRequest() bool { return len(t.personal)+len(t.taps) > 0 || t.tailed || t.probed }

// all are the targets of a port.
func (t *table) all() []*target {
	all := slices.Concat(t.personal, t.taps)
	for _, one := range []*target{t.global, t.datagrams} {
		if one != nil {
			all = append(all, one)
		}
	}
	return all
}

// tapped are the wiretaps that get a copy of a request.
func (a *agent) tapped(port uint16, r *route.Request) []*target {
	t := a.table(port)
	if t == nil || len(t.taps) == 0 {
		return nil
	}
	var all []*target
	for _, tap := range t.taps {
		switch {
		case tap.match != nil && !tap.match.Matches(r):
		case !tap.laptop.Reachable():
			a.report.drop(tap, 1)
		default:
			all = append(all, tap)
		}
	}
	return all
}

// wanted is the intercept that takes whatever comes on a port, or nil for the app.
func (a *agent) wanted(port uint16) *target {
	if t := a.table(port); t != nil && t.global != nil && !t.global.out() {
		return t.global
	}
	return nil
}

// choose returns what becomes of a request. A laptop that is unreachable leaves its requests to the app.
func (a *agent) choose(port uint16, r *route.Request) *choice {
	c := &choice{taps: a.tapped(port, r)}
	t := a.table(port)
	if t == nil || t.probed && probe(r) {
		return c
	}
	c.owner = t.global
	for _, p := range t.personal {
		if p.match.Matches(r) {
			c.owner = p
			break
		}
	}
	if c.owner != nil && !c.owner.out() {
		c.laptop = c.owner
	}
	return c
}

// setRoutes puts a configuration in force: intercepts, and the ports whose requests are to be reported. Intercepts that go on keep their state.
func (a *agent) setRoutes(intercepts []*agentv1.Intercept, tailed ...uint32) {
	old := map[string]*target{}
	for _, t := range *a.tables.Load() {
		for _, o := range t.all() {
			old[o.Uid] = o
		}
	}
	tables := map[uint16]*table{}
	for _, port := range tailed {
		tables[uint16(port)] = &table{tailed: true}
	}
	for _, i := range intercepts {
		port := uint16(i.Port)
		if tables[port] == nil {
			tables[port] = &table{}
		}
		now := old[i.Uid]
		if now == nil || !now.same(i) {
			now = a.newTarget(i)
			if i.Match != nil {
				match, err := route.Compile(i.Match)
				if err != nil {
					// The manager has refused such a match; one that is not understood takes nothing.
					a.log.Error("an intercept cannot be understood", "intercept", i.Uid, "err", err)
					continue
				}
				now.match = match
			}
		} else {
			delete(old, i.Uid)
		}
		now.laptop.SetAccess(laptop.Access{Address: i.RelayAddress, Token: i.Token})
		switch {
		case i.Datagrams:
			tables[port].datagrams = now
		case i.Wiretap:
			tables[port].taps = append(tables[port].taps, now)
		case now.match == nil:
			tables[port].global = now
		default:
			tables[port].personal = append(tables[port].personal, now)
		}
	}
	for port, t := range tables {
		t.probed = a.attachment.probes(port)
		slices.SortFunc(t.personal, func(x, y *target) int {
			return cmp.Or(route.Compare(x.Match, y.Match), cmp.Compare(x.Uid, y.Uid))
		})
	}
	a.tables.Store(&tables)
	if a.attachment != nil {
		if len(tables) > 0 && a.stopping.Err() == nil {
			a.podEnding.Store(false) // it is needed again
		}
		a.attachment.follow(tables)
	}
	for _, gone := range old {
		gone.end()
		a.report.forget(gone)
	}
	a.tellChanged()
}

// tellChanged lets all that is open look again where it belongs.
func (a *agent) tellChanged() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
	a.review()
}
