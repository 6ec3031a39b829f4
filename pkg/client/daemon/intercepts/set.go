// Package intercepts holds the intercepts of one session: those that this laptop has, and those
// that a session before this one had and that are not restored yet. Start with New and Set.Add.
package intercepts

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const (
	// activeTimeout is how long an intercept may take to become active: a rollout of many pods
	// takes long, and Ctrl-C ends the wait.
	activeTimeout  = 5 * time.Minute
	suspendTimeout = 15 * time.Second
	abandonTimeout = 5 * time.Second
)

// Relays joins relayed connections to local ports, by the UID of their intercept.
type Relays interface {
	// Add relays the connections of an intercept from now on.
	Add(uid string, port uint16)
	// Remove ends that. Open connections may finish.
	Remove(uid string)
}

// Config says what a Set works on. All fields are required.
type Config struct {
	Cluster *cluster.Client
	// Watch follows the session that owns the intercepts. The Set does not close it.
	Watch  *cluster.Watch
	Relays Relays
	// Session is the owner of the intercepts' objects.
	Session *detour.Session
	// DialLocal connects to a TCP port of a local process.
	DialLocal func(ctx context.Context, port uint16) (net.Conn, error)
	// Rootless is the mode of the session, for messages.
	Rootless bool
	Log      *slog.Logger
}

// Set holds the intercepts of a session. Its methods may be called concurrently.
type Set struct {
	Config

	// mu guards the fields below.
	mu      sync.Mutex
	active  map[string]*local // by the object's name
	pending []*Pending
}

// local is an intercept of this laptop.
type local struct {
	object  detour.Intercept
	request *daemonv1.InterceptRequest
	// formerNames are those of its objects in earlier sessions. A command that made the intercept
	// knows one of them.
	formerNames []string
}

// New returns an empty Set.
func New(c Config) *Set { return &Set{Config: c, active: map[string]*local{}} }

// Snapshot describes the intercepts, sorted by name.
func (s *Set) Snapshot() []*daemonv1.Intercept {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*daemonv1.Intercept
	for _, l := range s.active {
		all = append(all, describe(&l.object))
	}
	for _, p := range s.pending {
		all = append(all, p.describe())
	}
	slices.SortFunc(all, func(a, b *daemonv1.Intercept) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Refresh reads the objects of the active intercepts, which takes no request while they are
// watched. It returns an error for which cluster.IsSilent is true if the API server did not answer.
func (s *Set) Refresh(ctx context.Context) error {
	names := s.names()
	failures := make([]error, len(names))
	var reading sync.WaitGroup
	for n, name := range names {
		reading.Go(func() {
			i, err := s.Watch.Intercept(ctx, name)
			if failures[n] = err; err != nil {
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if l := s.active[name]; l != nil {
				l.object = *i
			}
		})
	}
	reading.Wait()
	if n := slices.IndexFunc(failures, cluster.IsSilent); n >= 0 {
		return failures[n]
	}
	return nil
}

// ForgetEnded drops the intercepts whose objects are gone: their time was over, or somebody has
// deleted them.
func (s *Set) ForgetEnded(ctx context.Context) {
	for _, name := range s.names() {
		if _, err := s.Watch.Intercept(ctx, name); !cluster.IsAbsent(err) {
			continue
		}
		s.Log.Info("an intercept has ended in the cluster", "intercept", name)
		s.forget(name)
	}
}

// names returns the names of the active intercepts.
func (s *Set) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.active))
}

// get returns a copy of an active intercept's object.
func (s *Set) get(name string) (detour.Intercept, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.active[name]; l != nil {
		return *l.object.DeepCopy(), true
	}
	return detour.Intercept{}, false
}

// forget drops an active intercept.
func (s *Set) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.active[name]; l != nil {
		s.Relays.Remove(string(l.object.UID))
		delete(s.active, name)
	}
}

// HandOver empties the Set and returns all of its intercepts, for the session after this one.
func (s *Set) HandOver() []*Pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.allLocked()
	s.active, s.pending = map[string]*local{}, nil
	return all
}

// All returns all intercepts of the Set as a session after this one would restore them.
func (s *Set) All() []*Pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allLocked()
}

func (s *Set) allLocked() []*Pending {
	var all []*Pending
	for _, l := range s.active {
		all = append(all, &Pending{request: l.request, formerNames: append(slices.Clone(l.formerNames), l.object.Name)})
	}
	return append(all, s.pending...)
}

// TakeOver replaces the contents of the Set by intercepts of the session before this one. Restore
// creates their objects.
func (s *Set) TakeOver(pending []*Pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.pending = map[string]*local{}, pending
}

// namesOf returns the names by which a person may mean an intercept: its service, or else its
// workload with and without the kind.
func namesOf(service string, workload *detour.WorkloadRef) []string {
	switch {
	case service != "":
		return []string{service}
	case workload == nil:
		return nil
	case workload.Kind == "":
		return []string{workload.Name}
	}
	return []string{workload.Name, strings.ToLower(workload.Kind) + "/" + workload.Name}
}

// sameTarget reports whether two requests are for the same traffic or work. Several intercepts can
// share a port, each with other requests.
func sameTarget(a, b *daemonv1.InterceptRequest) bool {
	return a.Service == b.Service && a.Port == b.Port && a.Protocol == b.Protocol && a.Workload == b.Workload &&
		proto.Equal(a.Match, b.Match)
}

// parseWorkload parses KIND/NAME or NAME. It returns nil for an empty text.
func parseWorkload(text string) *detour.WorkloadRef {
	if kind, name, ok := strings.Cut(text, "/"); ok {
		return &detour.WorkloadRef{Kind: kind, Name: name}
	} else if text != "" {
		return &detour.WorkloadRef{Name: text}
	}
	return nil
}

// workloadOf returns the workload of an intercept, which may be nil.
func workloadOf(i *detour.Intercept) *detour.WorkloadRef {
	return cmp.Or(i.Status.Workload, i.Spec.Workload)
}
