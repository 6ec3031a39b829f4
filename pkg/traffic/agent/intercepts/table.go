// Package intercepts holds the intercepts that are in force on the ports of a pod, and decides
// whose a request is. Start with Table.
package intercepts

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// probeAgent begins the User-Agent of the kubelet's probes, over HTTP and gRPC.
const probeAgent = "kube-probe/"

// Port is what is in force on a port of the app. It never changes.
type Port struct {
	Global    *Target   // takes everything that no other intercept takes; nil for none
	Datagrams *Target   // takes the datagrams of the UDP port with the number; nil for none
	Personal  []*Target // the most specific first
	Wiretaps  []*Target // get copies
	Tailed    bool      // somebody wants to see the requests
	Probed    bool      // the kubelet's probes are among the requests, and belong to the app
}

// ByRequest reports whether the requests of the port have to be looked at one by one. A nil Port
// has no intercepts.
func (p *Port) ByRequest() bool {
	return p != nil && (len(p.Personal)+len(p.Wiretaps) > 0 || p.Tailed || p.Probed)
}

// Targets returns all intercepts of the port.
func (p *Port) Targets() []*Target {
	if p == nil {
		return nil
	}
	all := slices.Concat(p.Personal, p.Wiretaps)
	for _, t := range []*Target{p.Global, p.Datagrams} {
		if t != nil {
			all = append(all, t)
		}
	}
	return all
}

// Target is an intercept in force. The token and address of its Intercept are those that it began
// with: Laptop has the present ones.
type Target struct {
	*agentv1.Intercept
	Laptop *laptop.Link
	// Ctx ends with the intercept.
	Ctx context.Context
	// PlaintextUntil is until when the process on the laptop is known not to speak TLS, in Unix
	// nanoseconds.
	PlaintextUntil atomic.Int64

	match *route.Match // nil for a global intercept
	end   context.CancelFunc
}

// UID returns the UID of the intercept; empty for nil.
func (t *Target) UID() string {
	if t == nil {
		return ""
	}
	return t.Uid
}

// AppAnswers reports whether the app has to answer in place of a laptop that did not answer lately.
func (t *Target) AppAnswers() bool { return !t.ErrorOnFailure && !t.Laptop.Reachable() }

// current returns the intercept as the manager would send it now.
func (t *Target) current() *agentv1.Intercept {
	i, access := proto.CloneOf(t.Intercept), t.Laptop.Access()
	i.Token, i.RelayAddress = access.Token, access.Address
	return i
}

// same reports whether i is the same intercept, however its laptop is reached.
func (t *Target) same(i *agentv1.Intercept) bool {
	now := t.current()
	now.Token, now.RelayAddress = i.Token, i.RelayAddress
	return proto.Equal(now, i)
}

// Config is what a Table needs of its agent.
type Config struct {
	TLS *tls.Config // authenticates the relay
	Log *slog.Logger
	// Go runs a task; the agent waits for it.
	Go func(task func())
	// OnChange is called after each change of what is in force or of which laptop is reachable. It
	// must not block.
	OnChange func()
	// OnEnd is called when an intercept has ended, OnLost when copies for one are not even made.
	// They must not block.
	OnEnd  func(uid string)
	OnLost func(uid string, copies uint64)
}

// Table is what is in force on all ports. It is safe for concurrent use; reads take no lock.
type Table struct {
	ctx    context.Context // of all intercepts
	config Config
	ports  atomic.Pointer[map[uint16]*Port]

	// mu guards the fields below, and serializes Set.
	mu     sync.Mutex
	probed map[uint16]bool
}

// New returns an empty Table, whose intercepts end with ctx.
func New(ctx context.Context, config Config) *Table {
	t := &Table{ctx: ctx, config: config}
	t.ports.Store(&map[uint16]*Port{})
	return t
}

// SetProbed names the ports on which the kubelet probes the app past a redirect, before the first
// Set.
func (t *Table) SetProbed(ports map[uint16]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.probed = ports
}

// Port returns what is in force on a port, or nil.
func (t *Table) Port(port uint16) *Port { return (*t.ports.Load())[port] }

// Ports returns the ports on which something is in force. The caller must not change them.
func (t *Table) Ports() map[uint16]*Port { return *t.ports.Load() }

// Strict returns the intercepts whose requests the app must not answer, as the manager would send
// them now.
func (t *Table) Strict() []*agentv1.Intercept {
	var strict []*agentv1.Intercept
	for _, p := range t.Ports() {
		for _, i := range p.Targets() {
			if i.ErrorOnFailure && !i.Wiretap {
				strict = append(strict, i.current())
			}
		}
	}
	return strict
}

// Global returns the intercept that takes everything that begins on a port, or nil for the app.
func (t *Table) Global(port uint16) *Target {
	if p := t.Port(port); p != nil && p.Global != nil && !p.Global.AppAnswers() {
		return p.Global
	}
	return nil
}

// Choice is what the intercepts in force make of a request.
type Choice struct {
	Owner  *Target   // the intercept that takes the request; nil for none
	Laptop *Target   // Owner, unless the app has to answer in its place
	Copies []*Target // get a copy
}

// ForApp reports whether the app alone gets the request.
func (c *Choice) ForApp() bool { return c.Laptop == nil && len(c.Copies) == 0 }

// Choose returns what becomes of a request. A laptop that is unreachable leaves its requests to the
// app.
func (t *Table) Choose(port uint16, r *route.Request) *Choice {
	p := t.Port(port)
	if p == nil {
		return &Choice{}
	}
	c := &Choice{Copies: t.copies(p, r)}
	if p.Probed && isProbe(r) {
		return c
	}
	c.Owner = p.Global
	for _, i := range p.Personal {
		if i.match.Matches(r) {
			c.Owner = i
			break
		}
	}
	if c.Owner != nil && !c.Owner.AppAnswers() {
		c.Laptop = c.Owner
	}
	return c
}

// copies returns the wiretaps that get a copy of a request.
func (t *Table) copies(p *Port, r *route.Request) []*Target {
	var all []*Target
	for _, i := range p.Wiretaps {
		switch {
		case i.match != nil && !i.match.Matches(r):
		case !i.Laptop.Reachable():
			t.config.OnLost(i.Uid, 1)
		default:
			all = append(all, i)
		}
	}
	return all
}

// isProbe reports whether a request is a probe of the kubelet. It is for the app whoever
// intercepts: unlike the probes of a new pod, it cannot be sent to another port.
func isProbe(r *route.Request) bool {
	for _, v := range r.Values("user-agent") {
		if strings.HasPrefix(v, probeAgent) {
			return true
		}
	}
	return false
}

// Set puts a whole configuration in force: intercepts, and the ports whose requests are tailed.
// Intercepts that were in force before keep their state. Set calls OnEnd for those that were not
// named again, and OnChange.
func (t *Table) Set(all []*agentv1.Intercept, tailed ...uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := map[string]*Target{}
	for _, p := range t.Ports() {
		for _, i := range p.Targets() {
			old[i.Uid] = i
		}
	}
	ports := map[uint16]*Port{}
	for _, port := range tailed {
		ports[uint16(port)] = &Port{Tailed: true}
	}
	for _, i := range all {
		port := uint16(i.Port)
		if ports[port] == nil {
			ports[port] = &Port{}
		}
		target := old[i.Uid]
		if target != nil && target.same(i) {
			delete(old, i.Uid)
		} else if target = t.newTarget(i); target == nil {
			continue
		}
		target.Laptop.SetAccess(laptop.Access{Address: i.RelayAddress, Token: i.Token})
		ports[port].add(target)
	}
	for port, p := range ports {
		p.Probed = t.probed[port]
		slices.SortFunc(p.Personal, func(x, y *Target) int {
			return cmp.Or(route.Compare(x.Match, y.Match), cmp.Compare(x.Uid, y.Uid))
		})
	}
	t.ports.Store(&ports)
	for _, ended := range old {
		ended.end()
		t.config.OnEnd(ended.Uid)
	}
	t.config.OnChange()
}

// newTarget returns a new intercept, or nil if its match cannot be compiled. The manager has
// refused such a match already, so that this does not happen; if it did, the intercept would take
// nothing.
func (t *Table) newTarget(i *agentv1.Intercept) *Target {
	target := &Target{Intercept: i}
	if i.Match != nil {
		match, err := route.Compile(i.Match)
		if err != nil {
			t.config.Log.Error("an intercept has an invalid match", "intercept", i.Uid, "err", err)
			return nil
		}
		target.match = match
	}
	target.Ctx, target.end = context.WithCancel(t.ctx)
	target.Laptop = laptop.New(target.Ctx, laptop.Config{
		UID: i.Uid, TLS: t.config.TLS, Log: t.config.Log, Go: t.config.Go, OnReachable: t.config.OnChange,
	})
	return target
}

func (p *Port) add(i *Target) {
	switch {
	case i.GetDatagrams():
		p.Datagrams = i
	case i.Wiretap:
		p.Wiretaps = append(p.Wiretaps, i)
	case i.match == nil:
		p.Global = i
	default:
		p.Personal = append(p.Personal, i)
	}
}
