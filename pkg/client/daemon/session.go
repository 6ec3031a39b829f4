package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/client/routes"
	"github.com/detour-dev/detour/pkg/client/svcwatch"
	"github.com/detour-dev/detour/pkg/client/tunnel"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/rootless"
	"github.com/detour-dev/detour/pkg/tail"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const (
	pollInterval   = 150 * time.Millisecond
	managerTimeout = 20 * time.Second // until the manager has answered a new session
	tunnelTimeout  = 20 * time.Second
	requestTimeout = 30 * time.Second
	partingTimeout = 5 * time.Second // of a request without which the laptop can go
)

// session is a live connection to one namespace of one cluster.
type session struct {
	paths           ipc.Paths
	host            string // the laptop's name
	log             *slog.Logger
	context, server string
	namespace       string
	config          *rest.Config // bounds each request
	kube            client.Client
	object          detour.Session
	since           time.Time
	heard           time.Time // from the cluster, when the session was last there; keep's
	vif             *vif.Interface
	dns             *dnsproxy.Proxy
	system          dnsproxy.System
	hub             netip.Addr // as the laptop sees it
	apiServer       []netip.Addr
	routing         routes.Wishes
	names           dnsproxy.Rules
	networks        routes.Plan
	unreached       error // which networks of the cluster collide with the laptop's since the session was made
	relays          *relayServer
	proof           []byte                  // see tail
	inside          *rootless.Namespace     // nil: the network is the laptop's own. See enter
	place           dnsproxy.Network        // where local ports and the cluster are
	cleanup         []func(context.Context) // run last to first
	mu              sync.Mutex
	intercepts      map[string]*localIntercept // by name
	wanted          []*wanted
	request         *daemonv1.ConnectRequest // what made it
	ended           bool                     // closed; only its problem is still of interest
	untold          error                    // why the cluster was not told of the end
	problem         error
	refused         error // why the cluster does not let the session go on
	expired         bool  // its credentials are why
	strange         int   // answers in a row that the session is gone which may not be the API server's. Of keep
}

// connect makes the session, the VIF and the DNS; on failure nothing of it is left. before is the session in whose place it comes, if any.
func connect(ctx context.Context, req *daemonv1.ConnectRequest, before *session, paths ipc.Paths, log *slog.Logger, progress func(string)) (_ *session, err error) {
	config, err := kubeconfig.Unpack(req.Kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := detour.AddToScheme(scheme); err != nil {
		return nil, err
	}
	s := &session{paths: paths, host: hostName(), log: log, context: req.Context, server: config.Host, namespace: req.Namespace, since: time.Now(), intercepts: map[string]*localIntercept{}, request: req}
	if s.routing, err = routes.Parse(req.GetNetworkOverrides().GetAlsoProxy(), req.GetNetworkOverrides().GetNeverProxy(), req.GetNetworkOverrides().GetMapSubnet()); err != nil {
		return nil, err
	}
	if s.names, err = dnsproxy.ParseRules(req.GetNetworkOverrides().GetIncludeSuffix(), req.GetNetworkOverrides().GetExcludeSuffix(), req.GetNetworkOverrides().GetMap()); err != nil {
		return nil, err
	}
	if before != nil {
		s.inside = before.inside
	}
	defer func() {
		if err != nil {
			ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
			defer done()
			_ = s.close(ending) // it has logged why
			if before == nil || s.inside != before.inside {
				s.closeInside()
			}
		}
	}()
	// No discovery: a user may have no right to it, and the types are known.
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"Session", "Intercept"} {
		mapper.Add(detour.GroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	bounded := rest.CopyConfig(config) // not for the tunnel, nor for what watches
	bounded.Timeout = requestTimeout
	if req.RequestTimeoutSeconds > 0 {
		bounded.Timeout = time.Duration(req.RequestTimeoutSeconds * float64(time.Second))
	}
	s.config = bounded
	web, err := rest.HTTPClientFor(bounded)
	if err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}
	web.Transport = credential.EndWithContext(web.Transport)
	if s.kube, err = client.New(bounded, client.Options{Scheme: scheme, Mapper: mapper, HTTPClient: web}); err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}
	key, err := wgkey.NewPrivate()
	if err != nil {
		return nil, err
	}
	if err := s.create(ctx, key, req, progress); err != nil {
		return nil, err
	}
	if err := s.network(ctx, key, config, req.ManagerNamespace, progress); err != nil {
		return nil, err
	}
	return s, nil
}

// journal remembers the Session object, so that one that a crash left behind is deleted at the next connect. A home that machines share, over NFS for
// example, has one of each: what another machine remembers may be in use there.
func (s *session) journal() string { return filepath.Join(s.paths.State, "session-"+s.host) }

func hostName() string {
	host, err := os.Hostname()
	if err != nil {
		return "laptop"
	}
	return host
}

// create makes the Session and waits for the manager's answer.
func (s *session) create(ctx context.Context, key wgkey.Key, req *daemonv1.ConnectRequest, progress func(string)) error {
	if old, err := os.ReadFile(s.journal()); err == nil {
		if server, name, ok := strings.Cut(string(old), " "); ok && server == s.server {
			ns, n, _ := strings.Cut(name, "/")
			_ = s.kube.Delete(ctx, &detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: n}})
		}
		_ = os.Remove(s.journal())
	}
	s.object = detour.Session{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, GenerateName: objectName(req.User) + "-"},
		Spec:       detour.SessionSpec{PublicKey: key.Public().String(), ClientVersion: version.Version, User: printable(req.User), Host: printable(s.host)},
	}
	progress("making a session in namespace " + s.namespace)
	if err := s.kube.Create(ctx, &s.object); err != nil {
		return explain.Context{Doing: "create a session in namespace " + s.namespace, Server: s.server, Namespace: s.namespace}.Error(err)
	}
	s.cleanup = append(s.cleanup, func(ctx context.Context) {
		if s.untold == nil {
			s.untold = s.part(ctx, func(ctx context.Context) error { return client.IgnoreNotFound(s.kube.Delete(ctx, &s.object)) })
		}
		if s.untold != nil {
			s.log.Warn("deleting the session failed", "err", s.untold)
			return
		}
		_ = os.Remove(s.journal())
	})
	if err := os.WriteFile(s.journal(), []byte(s.server+" "+s.namespace+"/"+s.object.Name), 0o600); err != nil {
		// Without the note a crash leaves the session behind for as long as the traffic-manager waits for the laptop.
		s.log.Warn("noting the session failed", "err", err)
	}
	deadline := time.Now().Add(managerTimeout)
	for s.object.Status.ManagerPublicKey == "" || len(s.object.Status.Addresses) == 0 {
		if err := hopeless(s.object.Status); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the traffic-manager does not answer within %s: see whether its pod runs with `kubectl -n %s get pods`", managerTimeout, req.ManagerNamespace)
		}
		if err := sleep(ctx, pollInterval); err != nil {
			return err
		}
		if err := s.kube.Get(ctx, client.ObjectKeyFromObject(&s.object), &s.object); err != nil {
			return explain.Error(err, "read the session")
		}
	}
	return hopeless(s.object.Status)
}

// hopeless is why the traffic-manager has no tunnel for a session, or nil.
func hopeless(status detour.SessionStatus) error {
	if c := meta.FindStatusCondition(status.Conditions, detour.ConditionReady); c != nil && slices.Contains([]string{detour.ReasonVersionMismatch, detour.ReasonNoAddressLeft, detour.ReasonKeyTaken}, c.Reason) {
		return errors.New(c.Message)
	}
	return nil
}

// network brings up the VIF, the relay's listener and the DNS.
func (s *session) network(ctx context.Context, key wgkey.Key, config *rest.Config, managerNamespace string, progress func(string)) error {
	status := s.object.Status
	managerKey, err := wgkey.Parse(status.ManagerPublicKey)
	if err != nil {
		return fmt.Errorf("the traffic-manager's key: %w", err)
	}
	var addresses []netip.Addr
	for _, text := range status.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("the laptop's address: %w", err)
		}
		addresses = append(addresses, a)
	}
	if s.apiServer, err = wayToServer(ctx, config); err != nil {
		return err
	}
	if s.proof, err = key.Proof(managerKey, tail.ProofPurpose); err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	if s.networks, err = s.plan(ctx); err != nil {
		return err
	}
	for _, text := range status.Subnets {
		if p, err := netip.ParsePrefix(text); err == nil && p.IsSingleIP() && p.Addr().Is4() {
			s.hub = s.networks.Remap.Seen(p.Addr())
		}
	}
	dialer, err := tunnel.New(config, managerNamespace, s.request.Transport, s.managerPod)
	if err != nil {
		return err
	}
	s.cleanup = append(s.cleanup, func(context.Context) { dialer.Close() })
	progress("opening the tunnel through the API server")
	tunnelConfig := vif.Config{
		PrivateKey: key, PeerKey: managerKey, Addresses: addresses, Routes: s.networks.Routes, Remap: s.networks.Remap,
		InboundPort: relay.LaptopPort, Dial: dialer.Open, Log: s.log,
	}
	if s.inside != nil {
		tunnelConfig.OpenTUN = s.inside.OpenTUN(s.request.HostLoopback)
	}
	s.vif, err = vif.Up(ctx, tunnelConfig)
	if err != nil {
		return err
	}
	s.cleanup = append(s.cleanup, func(context.Context) {
		if err := s.vif.Close(); err != nil {
			s.log.Warn("closing the VIF failed", "err", err)
		}
	})
	waiting, cancel := context.WithTimeout(ctx, tunnelTimeout)
	defer cancel()
	if err := s.vif.Ready(waiting); err != nil {
		if errors.Is(err, tunnel.ErrNotInstalled) {
			return tunnel.ErrNotInstalled
		}
		return explain.Error(err, "open the tunnel")
	}
	s.heard = s.vif.LastReceived()
	s.offerDirect(ctx, status.UDPEndpoints)
	if s.relays, err = newRelayServer(addresses, s.place, s.log); err != nil {
		return err
	}
	s.cleanup = append(s.cleanup, func(context.Context) { s.relays.close() })
	return s.resolver(addresses[0], config)
}

func parseSubnets(texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("the cluster's networks: %w", err)
		}
		all = append(all, p)
	}
	return all, nil
}

func (s *session) resolver(listen netip.Addr, config *rest.Config) error {
	files := s.paths.Resolver()
	if s.system = dnsproxy.Plain(files); s.inside == nil {
		s.system = dnsproxy.FindSystem(context.Background(), files, s.log)
	}
	upstream, err := s.system.Upstream()
	if err != nil {
		return err
	}
	var servers []string
	for _, text := range s.object.Status.DNS.Servers {
		if ip, err := netip.ParseAddr(text); err == nil {
			servers = append(servers, netip.AddrPortFrom(s.networks.Remap.Seen(ip), 53).String())
		}
	}
	if len(servers) == 0 {
		s.log.Warn("the cluster's DNS was not found: names of services do not resolve")
		if s.inside == nil {
			return nil
		}
		// Inside there is no other way to the resolvers of the laptop.
	}
	domain := s.object.Status.DNS.Domain
	known, err := svcwatch.Watch(config, svcwatch.Config{Namespace: s.namespace, Domain: domain, Alive: s.vif.Alive, Log: s.log})
	if err != nil {
		return err
	}
	s.cleanup = append(s.cleanup, func(context.Context) { known.Close() })
	s.dns, err = dnsproxy.Start(dnsproxy.Config{Listen: netip.AddrPortFrom(listen, 53), Network: s.place, Cluster: servers, Domain: domain, Namespace: s.namespace, Upstream: upstream, Names: known, Alive: s.vif.Alive, Rules: s.names, Log: s.log})
	if err != nil {
		return err
	}
	s.dns.SetNetworks(s.networks.Routes, s.networks.Remap)
	s.cleanup = append(s.cleanup, func(context.Context) {
		if err := s.dns.Close(); err != nil {
			s.log.Debug("closing the DNS failed", "err", err)
		}
	})
	search := []string{s.namespace + ".svc." + domain, "svc." + domain, domain}
	if s.inside != nil {
		return s.insideResolver(files, listen, search)
	}
	// Also when only a part of it is set.
	s.cleanup = append(s.cleanup, func(context.Context) {
		if err := s.system.Restore(); err != nil {
			s.log.Warn("putting the resolver back failed", "err", err)
		}
	})
	return s.system.Set(s.vif.Name(), listen, search)
}

// followResolvers learns of other resolvers, when the laptop has come into another network.
func (s *session) followResolvers() {
	if s.dns == nil {
		return
	}
	if err := s.system.Keep(); err != nil {
		s.log.Warn("making the cluster's names known again failed", "err", err)
	}
	if all, err := s.system.Upstream(); err == nil && len(all) > 0 {
		s.dns.SetUpstream(all)
	}
}

// close undoes everything, last to first. A cluster that does not answer is not waited for: it finds out by itself, and why it was not told
// is returned.
func (s *session) close(ctx context.Context) error {
	if s.isEnded() {
		return s.untold
	}
	s.mu.Lock()
	s.wanted = nil
	names := slices.Collect(maps.Keys(s.intercepts))
	s.mu.Unlock()
	s.untold = s.suspend(ctx, names)
	left := false
	for _, name := range names {
		if silent(s.untold) {
			break
		}
		if _, err := s.leaveOne(ctx, name); err != nil {
			s.log.Warn("leaving an intercept failed", "intercept", name, "err", err)
			s.untold = err
		} else {
			left = true
		}
	}
	if left && !silent(s.untold) {
		s.relays.finish(ctx)
	}
	if !silent(s.untold) || ctx.Err() != nil {
		s.untold = nil // the session's end is that of its intercepts
	}
	// Also for somebody who does not wait any longer.
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer done()
	for _, f := range slices.Backward(s.cleanup) {
		f(ending)
	}
	s.cleanup = nil
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	return s.untold
}

// part asks the API server for something without which the laptop can go.
func (s *session) part(ctx context.Context, ask func(context.Context) error) error {
	ctx, done := context.WithTimeout(ctx, partingTimeout)
	defer done()
	return ask(ctx)
}

// silent says whether an error means that the API server did not answer.
func silent(err error) bool {
	var unreached *url.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &unreached)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// printable leaves out of a name what no Session takes.
func printable(name string) string {
	return strings.Map(func(c rune) rune {
		if unicode.Is(unicode.C, c) {
			return -1
		}
		return c
	}, name)
}

// objectName makes a name that Kubernetes takes (RFC 1123) of a person's.
func objectName(s string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteRune(c)
		} else if b.Len() > 0 {
			b.WriteByte('-')
		}
	}
	name := strings.Trim(b.String(), "-")
	if name == "" {
		return "laptop"
	}
	return name[:min(len(name), 40)]
}
