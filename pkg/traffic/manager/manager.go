// Package manager is the traffic-manager. It carries out Sessions and Intercepts, ends the laptops'
// tunnels, tells the agents which traffic to divert, and relays that to the laptops. It rebuilds
// everything that it knows from the Kubernetes API.
//
// Start with Run, which puts the parts together: package session looks after laptops, package
// intercept after Intercepts, package agents after the connected agents, and package webhook adds
// agents to new pods. The servers for laptops and agents are in tunnel.go, relay.go and tail.go.
package manager

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	ctrlmanager "sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/traffic/manager/agents"
	"github.com/detour-dev/detour/pkg/traffic/manager/intercept"
	"github.com/detour-dev/detour/pkg/traffic/manager/session"
	"github.com/detour-dev/detour/pkg/traffic/manager/webhook"
	"github.com/detour-dev/detour/pkg/tuning"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
)

const (
	// apiQPS and apiBurst limit requests to the API server. The defaults of 20 and 30 are too few
	// when many intercepts change at once.
	apiQPS, apiBurst = 50, 100
	// shutdownTimeout is how long tasks may take to end. The pod has 30 s, but nobody waits for a
	// manager that ends: its tunnels are down.
	shutdownTimeout = 3 * time.Second
)

// Options are the traffic-manager's settings.
type Options struct {
	PodName, PodNamespace, PodIP string
	NodeName                     string
	AgentImage, AgentPullPolicy  string
	SessionCIDR, SessionCIDR6    string // the laptops' addresses; one of the two may be empty
	ClusterDomain                string
	UDP                          string // how laptops reach the WireGuard port: see session.Config
	UDPHostPort                  uint16
	StaleAfter                   time.Duration // how long a connected laptop may be silent
	SessionTTL                   time.Duration // how long until a silent laptop's session is deleted
	Log                          *slog.Logger
}

func (o Options) serverName() string { return wellknown.TrafficManager + "." + o.PodNamespace + ".svc" }

// agent returns the options that agents are created with.
func (o Options) agent(ca []byte) inject.Options {
	return inject.Options{
		Image: o.AgentImage, PullPolicy: corev1.PullPolicy(o.AgentPullPolicy),
		Manager: fmt.Sprintf("%s:%d", o.serverName(), wellknown.AgentPort), Server: o.serverName(), CA: ca,
	}
}

// Run runs the traffic-manager until ctx ends.
func Run(ctx context.Context, o Options) error {
	ctrl.SetLogger(logr.FromSlogHandler(o.Log.Handler()))
	if err := session.CheckUDP(o.UDP); err != nil {
		return err
	}
	pool, err := session.ParsePool(o.SessionCIDR, o.SessionCIDR6)
	if err != nil {
		return err
	}
	m := &manager{options: o, pool: pool}
	if err := m.connect(ctx); err != nil {
		return err
	}
	hub, err := m.newHub()
	if err != nil {
		return err
	}
	defer hub.Close()
	if err := m.addControllers(ctx, hub); err != nil {
		return err
	}
	if err := m.addTasks(hub); err != nil {
		return err
	}
	if err := m.Start(ctx); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	return nil
}

// manager holds the parts of a traffic-manager while Run puts them together.
type manager struct {
	ctrl.Manager
	options Options
	pool    *session.Pool
	rest    *rest.Config
	direct  client.Client // without a cache
	keys    *keys
	certs   *certificates

	agents     *agents.Registry
	sessions   *session.Reconciler
	intercepts *intercept.Reconciler
	injector   *webhook.Injector
}

// connect connects to the API server, reads the manager's keys from there, and makes the controller
// manager.
func (m *manager) connect(ctx context.Context) (err error) {
	if m.rest, err = ctrl.GetConfig(); err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	m.rest.QPS, m.rest.Burst = apiQPS, apiBurst
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(detour.AddToScheme(scheme))
	if m.direct, err = client.New(m.rest, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	if m.keys, err = loadKeys(ctx, m.direct, m.options); err != nil {
		return err
	}
	if m.certs, err = newCertificates(m.keys, m.options); err != nil {
		return err
	}
	lease, err := newLease(m.rest, m.direct, m.options)
	if err != nil {
		return err
	}
	webhooks := ctrlwebhook.Options{Port: wellknown.WebhookPort, TLSOpts: []func(*tls.Config){m.certs.configure}}
	m.Manager, err = ctrl.NewManager(m.rest, ctrl.Options{
		Scheme:                              scheme,
		LeaderElection:                      true,
		LeaderElectionResourceLockInterface: lease,
		LeaderElectionReleaseOnCancel:       true,
		LeaseDuration:                       ptr(leaseDuration),
		RenewDeadline:                       ptr(renewDeadline),
		RetryPeriod:                         ptr(leaseRetry),
		HealthProbeBindAddress:              port(wellknown.HealthPort),
		Metrics:                             metricsserver.Options{BindAddress: port(wellknown.MetricsPort)},
		WebhookServer:                       ctrlwebhook.NewServer(webhooks),
		Cache:                               cache.Options{DefaultTransform: stripManagedFields},
		Client: client.Options{Cache: &client.CacheOptions{
			DisableFor: []client.Object{&corev1.Secret{}}, Unstructured: true,
		}},
		GracefulShutdownTimeout: ptr(shutdownTimeout),
	})
	if err != nil {
		return fmt.Errorf("make the controller manager: %w", err)
	}
	return nil
}

// stripManagedFields keeps a part of every object out of the cache that is large and that nobody
// reads.
func stripManagedFields(in any) (any, error) {
	if o, ok := in.(client.Object); ok {
		o.SetManagedFields(nil)
	}
	return in, nil
}

func (m *manager) newHub() (*vif.Hub, error) {
	config := vif.HubConfig{
		PrivateKey: m.keys.wireguard, Addresses: m.pool.ManagerAddresses(), Log: m.log("tunnel"), Allow: mayReach,
	}
	if m.options.UDP != "" {
		config.UDPPort = wellknown.WireGuardPort
	}
	return vif.NewHub(config)
}

// addControllers makes the reconcilers and the webhook.
func (m *manager) addControllers(ctx context.Context, hub *vif.Hub) error {
	o := m.options
	m.agents = agents.New(agents.Config{
		Reader: m.GetAPIReader(), Reviewer: m.direct, Log: o.Log,
		RelayAddress: net.JoinHostPort(o.PodIP, fmt.Sprint(wellknown.RelayPort)),
	})
	m.sessions = session.New(session.Config{
		Client: m.GetClient(), Reader: m.GetAPIReader(), Tunnel: hub, Pool: m.pool,
		PublicKey: m.keys.wireguard.Public(), PodName: o.PodName, PodNamespace: o.PodNamespace, NodeName: o.NodeName,
		ClusterDomain: o.ClusterDomain, UDP: o.UDP, UDPHostPort: o.UDPHostPort,
		StaleAfter: o.StaleAfter, TTL: o.SessionTTL, Log: o.Log,
	})
	apis, err := discovery.NewDiscoveryClientForConfigAndClient(m.rest, m.GetHTTPClient())
	if err != nil {
		return fmt.Errorf("make the discovery client: %w", err)
	}
	agent := o.agent(m.keys.caPEM)
	m.intercepts = intercept.New(intercept.Config{
		Client: m.GetClient(), Reader: m.GetAPIReader(), Agents: m.agents, Initial: m.agents.Initial, Inject: agent,
		Cache: m.GetCache(), Discovery: apis, Log: o.Log,
		WebhookCalled: func() time.Time { return m.injector.LastCall() },
	})
	if err := m.sessions.Setup(ctx, m); err != nil {
		return err
	}
	if err := m.intercepts.Setup(ctx, m); err != nil {
		return err
	}
	m.injector = webhook.New(agent, m.intercepts.PlanOfRollout, o.Log)
	m.injector.Register(m)
	return nil
}

// addTasks adds what the manager serves and does beside the controllers.
func (m *manager) addTasks(hub *vif.Hub) error {
	relays := &relayServer{hub: hub, target: m.agents.RelayTarget, log: m.log("relay")}
	tails := &tailServer{intercepts: m.intercepts, agents: m.agents, key: m.keys.wireguard, log: m.log("tail")}
	for _, task := range []ctrlmanager.Runnable{
		everyReplica(func(ctx context.Context) error { return serveTunnel(ctx, hub, m.log("tunnel")) }),
		everyReplica(func(ctx context.Context) error {
			return m.agents.Serve(ctx, port(wellknown.AgentPort), m.certs.config())
		}),
		everyReplica(func(ctx context.Context) error { return relays.serve(ctx, m.certs) }),
		everyReplica(func(ctx context.Context) error { tuning.AdaptGOMAXPROCS(ctx); return nil }),
		everyReplica(m.sessions.WatchPeers),
		everyReplica(m.intercepts.FollowRollouts),
		everyReplica(func(ctx context.Context) error {
			return tails.serve(ctx, hub, m.pool.ManagerAddresses())
		}),
		everyReplica(func(ctx context.Context) error { return m.injector.MaintainAuthority(ctx, m.direct) }),
		ctrlmanager.RunnableFunc(m.intercepts.RunInitialSync),
	} {
		if err := m.Add(task); err != nil {
			return fmt.Errorf("add a task: %w", err)
		}
	}
	err := errors.Join(
		m.AddHealthzCheck("alive", healthz.Ping),
		m.AddReadyzCheck("webhook", m.GetWebhookServer().StartedChecker()),
		m.AddReadyzCheck("authority", m.injector.Ready()),
	)
	if err != nil {
		return fmt.Errorf("add the probes: %w", err)
	}
	return nil
}

func (m *manager) log(component string) *slog.Logger {
	return m.options.Log.With("component", component)
}

// port returns the address that listens on a port of the pod.
func port(number int) string { return net.JoinHostPort("", fmt.Sprint(number)) }

// everyReplica is a task that does not wait until the manager is the leader.
type everyReplica func(context.Context) error

// Start implements ctrlmanager.Runnable.
func (f everyReplica) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements ctrlmanager.LeaderElectionRunnable.
func (everyReplica) NeedLeaderElection() bool { return false }

func ptr[T any](v T) *T { return &v }
