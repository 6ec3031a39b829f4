package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/daemon/intercepts"
	"github.com/detour-dev/detour/pkg/client/daemon/localrelay"
	"github.com/detour-dev/detour/pkg/client/daemon/network"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/client/overrides"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// session is a live connection to one namespace of one cluster, or what remains of one that has
// ended: why it ended, and its intercepts for the session after it. Each part has its own lock.
type session struct {
	identity
	log        *slog.Logger
	cluster    *cluster.Client
	record     *record             // the Session object
	watch      *cluster.Watch      // of the Session and its Intercepts
	namespaces *network.Namespaces // of rootless mode, else nil. They outlive the session
	network    sessionNetwork
	relays     *localrelay.Server
	intercepts *intercepts.Set
	health     health
	verified   time.Time // when refresh last read the object by a request; only supervise uses it

	// mu guards the fields below.
	mu         sync.Mutex
	ended      bool
	notDeleted error // why the Session object may still be there
}

// sessionNetwork is what a session needs of a network.Network.
type sessionNetwork interface {
	Addresses() []netip.Addr
	Place() dnsproxy.Network
	Hub() (address netip.Addr, proof []byte)
	Alive() bool
	LastReceived() time.Time
	RTT(context.Context) time.Duration
	Snapshot() network.Snapshot
	FollowResolvers()
	OfferDirect(ctx context.Context, endpoints []string)
	Follow(detour.SessionStatus) error
	Close()
}

// identity is what a session was made from. It does not change.
type identity struct {
	request *daemonv1.ConnectRequest
	server  string // the URL of the API server
	paths   ipc.Paths
	host    string // the laptop's name
	since   time.Time
}

// mismatch describes where the session leads to, if a request is for somewhere else. The contexts
// of two kubeconfigs can have the same name: many clusters have one called "default".
func (i *identity) mismatch(req *daemonv1.ConnectRequest, server string) string {
	switch where := fmt.Sprintf("namespace %s of context %s", i.request.Namespace, i.request.Context); {
	case i.request.Context != req.Context || i.request.Namespace != req.Namespace:
		return where
	case i.server != server:
		return where + " at " + i.server
	}
	return ""
}

// connect makes a session: the Session object, the network, and the server for relayed connections.
// before is the session that it replaces, or nil: its namespaces are used again. After an error
// nothing is left of the session.
func connect(
	ctx context.Context, req *daemonv1.ConnectRequest, before *session, paths ipc.Paths, log *slog.Logger,
	progress func(string),
) (_ *session, err error) {
	config, err := kubeconfig.Unpack(req.Kubeconfig)
	if err != nil {
		return nil, err
	}
	parsed, err := overrides.Parse(req.NetworkOverrides)
	if err != nil {
		return nil, err
	}
	s := &session{
		identity: identity{request: req, server: config.Host, paths: paths, host: hostName(), since: time.Now()},
		log:      log.With("component", "daemon"),
	}
	if before != nil {
		s.namespaces = before.namespaces
	}
	defer func() {
		if err != nil {
			ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
			defer done()
			_ = s.close(ending) // it logs its error
			if before == nil || s.namespaces != before.namespaces {
				s.namespaces.Close()
			}
		}
	}()
	timeout := time.Duration(req.RequestTimeoutSeconds * float64(time.Second))
	if s.cluster, err = cluster.Connect(config, req.Namespace, timeout, log.With("component", "cluster")); err != nil {
		return nil, err
	}
	key, err := wgkey.NewPrivate()
	if err != nil {
		return nil, err
	}
	if err := s.create(ctx, key, progress); err != nil {
		return nil, err
	}
	if err := s.startParts(ctx, config, key, parsed, log, progress); err != nil {
		return nil, err
	}
	return s, nil
}

// startParts starts what works on an accepted session: the network, the server for relayed
// connections, and the intercepts.
func (s *session) startParts(
	ctx context.Context, config *rest.Config, key wgkey.Key, parsed overrides.Overrides, log *slog.Logger,
	progress func(string),
) (err error) {
	if err := s.findNamespaces(ctx); err != nil {
		return err
	}
	object, req := s.record.get(), s.request
	up, err := network.Up(ctx, network.Config{
		Paths: s.paths, Cluster: config, Namespace: req.Namespace, ManagerNamespace: req.ManagerNamespace,
		Status: object.Status, Key: key, Overrides: parsed, Transport: req.Transport, HostLoopback: req.HostLoopback,
		Namespaces: s.namespaces, ManagerPod: s.managerPod, Progress: progress,
		Log: log.With("component", "network"),
	})
	if err != nil {
		return err
	}
	s.network = up
	s.health.received(up.LastReceived())
	s.watch.FollowLiveness(up.Alive)
	if s.relays, err = localrelay.Listen(up.Addresses(), up.Place(), log.With("component", "localrelay")); err != nil {
		return err
	}
	s.intercepts = intercepts.New(intercepts.Config{
		Cluster: s.cluster, Watch: s.watch, Relays: s.relays, Session: &object, Rootless: s.paths.Rootless,
		Log: log.With("component", "intercepts"),
		DialLocal: func(ctx context.Context, port uint16) (net.Conn, error) {
			return localrelay.DialLocal(ctx, up.Place().Dial, port)
		},
	})
	return nil
}

// findNamespaces makes the namespaces of rootless mode, unless those of the session before are
// still there: processes that run in them cannot move to others.
func (s *session) findNamespaces(ctx context.Context) (err error) {
	if !s.paths.Rootless || s.namespaces != nil && !s.namespaces.Gone() {
		return nil
	}
	s.namespaces.Close()
	s.namespaces, err = network.NewNamespaces(ctx, s.paths, s.log)
	return err
}

// close leaves the intercepts, restores the laptop and deletes the Session object. If the API
// server does not answer, close does not wait for it: the traffic-manager gives the session up by
// itself. The error says why the object may still be there.
func (s *session) close(ctx context.Context) error {
	if s.isEnded() {
		return s.whyNotDeleted()
	}
	var notDeleted error
	if s.intercepts != nil {
		left, err := s.intercepts.LeaveAll(ctx)
		if cluster.IsSilent(err) {
			notDeleted = err
		} else if left {
			s.relays.Drain(ctx)
		}
	}
	if ctx.Err() != nil {
		notDeleted = nil // nobody waits any longer; deleting the session ends its intercepts too
	}
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer done()
	if s.relays != nil {
		s.relays.Close()
	}
	if s.network != nil {
		s.network.Close()
	}
	if s.watch != nil {
		s.watch.Close()
	}
	if s.record != nil {
		notDeleted = s.deleteObject(ending, notDeleted)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.notDeleted = true, notDeleted
	return notDeleted
}

func (s *session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *session) whyNotDeleted() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notDeleted
}

// takeOver takes the intercepts of the session before this one, if that led to the same place.
func (s *session) takeOver(before *session) {
	if before != nil && before.intercepts != nil && before.mismatch(s.request, s.server) == "" {
		s.intercepts.TakeOver(before.intercepts.All())
	}
}
