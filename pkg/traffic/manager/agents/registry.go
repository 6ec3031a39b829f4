package agents

import (
	"crypto/subtle"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/controller-runtime/pkg/client"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// ActiveIntercept is one intercept that agents follow, as the reconciler decided it.
type ActiveIntercept struct {
	Port           int32           // the app's port number
	Pods           map[string]bool // UIDs of the pods whose traffic the laptop gets
	Address        string          // the laptop's VIF address
	Laptop         string          // user@host
	Match          *agentv1.Match  // nil: all traffic of the port
	Wiretap        bool            // the laptop gets copies only
	LocalPlaintext bool            // requests that the agent decrypted go to the laptop without TLS
	Datagrams      bool            // Port is a UDP port
	ErrorOnFailure bool            // an unreachable laptop causes errors; the app does not answer instead
}

// Same reports whether agents would behave the same under both. The other fields are part of an
// intercept's spec, which cannot change.
func (i *ActiveIntercept) Same(other *ActiveIntercept) bool {
	return i.Port == other.Port && i.Address == other.Address && proto.Equal(i.Match, other.Match) &&
		i.LocalPlaintext == other.LocalPlaintext && samePods(i.Pods, other.Pods)
}

func samePods(a, b map[string]bool) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if !b[k] {
			return false
		}
	}
	return true
}

// Config is what a Registry needs from the traffic-manager.
type Config struct {
	// Reader reads pods from the API server without a cache.
	Reader client.Reader
	// Reviewer creates TokenReviews.
	Reviewer client.Client
	// RelayAddress is the host:port where agents open relay connections.
	RelayAddress string
	Log          *slog.Logger
}

// Registry holds the connected agents, the intercepts that they are to follow, and what they have
// confirmed. All methods may be called concurrently.
type Registry struct {
	agentv1.UnimplementedAgentServiceServer
	config Config
	// Initial holds agents back until a new manager has seen every Intercept.
	Initial *InitialSync

	// mu guards the fields below, the fields of every agent, and those of every Watcher.
	mu         sync.Mutex
	generation uint64
	active     map[string]ActiveIntercept // by intercept UID
	connected  map[*agent]struct{}
	watchers   map[*Watcher]struct{}
	dropped    map[string]map[string]uint64 // copies that a laptop did not get, by intercept UID and pod UID
	notify     func()
}

// agent is one connected agent. A pod may have several: its sidecar, and one for each attachment.
type agent struct {
	pod     string   // UID
	serves  []uint32 // the app ports that it stands in front of
	wake    chan struct{}
	applied uint64 // the generation of the last configuration that it confirmed
	tokens  map[string][]byte
	ports   map[int32]*agentv1.PortState // what it found out about the app's ports
}

// New returns a Registry without agents. The caller serves it with Serve.
func New(c Config) *Registry {
	c.Log = c.Log.With("component", "agents")
	return &Registry{
		config: c, Initial: NewInitialSync(),
		active: map[string]ActiveIntercept{}, connected: map[*agent]struct{}{}, watchers: map[*Watcher]struct{}{},
		dropped: map[string]map[string]uint64{}, notify: func() {},
	}
}

// Notify sets the function that is called when an agent confirms, reports or disconnects. It may be
// called with a lock held, so it must not block and must not call the Registry. Notify itself must
// be called before Serve.
func (r *Registry) Notify(notify func()) { r.notify = notify }

// Activate makes agents follow an intercept. It does nothing if they already do.
func (r *Registry) Activate(uid string, i ActiveIntercept) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before, ok := r.active[uid]; ok && before.Same(&i) {
		return
	}
	r.active[uid] = i
	r.changedLocked()
}

// Deactivate makes agents stop following an intercept. It does nothing if they do not follow it.
func (r *Registry) Deactivate(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deactivateLocked(uid)
}

// Retain deactivates every intercept whose UID is not in alive.
func (r *Registry) Retain(alive map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid := range r.active {
		if !alive[uid] {
			r.deactivateLocked(uid)
		}
	}
}

func (r *Registry) deactivateLocked(uid string) {
	if _, ok := r.active[uid]; !ok {
		return
	}
	delete(r.active, uid)
	delete(r.dropped, uid)
	r.changedLocked()
}

func (r *Registry) changedLocked() {
	r.generation++
	r.wakeLocked()
}

// wakeLocked sends every agent its configuration again.
func (r *Registry) wakeLocked() {
	for a := range r.connected {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// Active returns the intercept that agents follow under this UID, or nil. The caller must not
// change its maps.
func (r *Registry) Active(uid string) *ActiveIntercept {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.active[uid]
	if !ok {
		return nil
	}
	return &i
}

// Confirmed reports whether every agent of a pod that stands in front of a port has applied the
// newest configuration, and so follows each intercept as it is now. It is false if there is no such
// agent.
func (r *Registry) Confirmed(pod string, port int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := false
	for a := range r.connected {
		if a.pod == pod && slices.Contains(a.serves, uint32(port)) {
			if a.applied < r.generation {
				return false
			}
			found = true
		}
	}
	return found
}

// PortState returns what an agent of one of the pods found out about a port's TLS that keeps it
// from reading requests, or nil.
func (r *Registry) PortState(pods map[string]bool, port int32) *agentv1.PortState {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a := range r.connected {
		if pods[a.pod] && a.ports[port] != nil {
			return a.ports[port]
		}
	}
	return nil
}

// RelayTarget returns the laptop's address for an intercept if token was issued for it to an agent
// that is still connected.
func (r *Registry) RelayTarget(uid string, token []byte) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.active[uid]
	if !ok {
		return "", false
	}
	for a := range r.connected {
		if t, ok := a.tokens[uid]; ok && subtle.ConstantTimeCompare(t, token) == 1 {
			return i.Address, true
		}
	}
	return "", false
}

// DroppedCopies returns how many copies the laptop of a wiretap did not get.
func (r *Registry) DroppedCopies(uid string) (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, count := range r.dropped[uid] {
		n += count
	}
	return n
}
