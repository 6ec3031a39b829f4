// Package manager is the traffic-manager: it reconciles Sessions and Intercepts, ends the laptops' tunnels, tells the agents what
// is in force, and relays intercepted connections to the laptops. All it knows it rebuilds from the Kubernetes API.
package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	ctrlmanager "sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/tuning"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
)

// Options are the traffic-manager's settings.
type Options struct {
	PodName, PodNamespace, PodIP string
	AgentImage                   string
	AgentPullPolicy              string
	SessionCIDR, SessionCIDR6    string
	ClusterDomain                string
	UDP                          string // how laptops reach the WireGuard port: UDPNodePort, UDPLoadBalancer, UDPHostPort; empty for not at all
	UDPHostPort                  uint16
	NodeName                     string
	StaleAfter                   time.Duration // a laptop that is silent for longer is gone
	SessionTTL                   time.Duration // and after this its session is deleted
	Log                          *slog.Logger
}

func (o Options) serverName() string { return wellknown.TrafficManager + "." + o.PodNamespace + ".svc" }

// agent is what the agents are made with.
func (o Options) agent(ca []byte) inject.Options {
	return inject.Options{Image: o.AgentImage, PullPolicy: corev1.PullPolicy(o.AgentPullPolicy), Manager: fmt.Sprintf("%s:%d", o.serverName(), wellknown.AgentPort), Server: o.serverName(), CA: ca}
}

// Run runs the traffic-manager until ctx ends.
func Run(ctx context.Context, o Options) error {
	ctrl.SetLogger(logr.FromSlogHandler(o.Log.Handler()))
	if err := checkUDP(o.UDP); err != nil {
		return err
	}
	pool, err := parsePool(o.SessionCIDR, o.SessionCIDR6)
	if err != nil {
		return err
	}
	rest, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	rest.QPS, rest.Burst = 50, 100
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(detour.AddToScheme(scheme))

	direct, err := client.New(rest, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	keys, err := loadKeys(ctx, direct, o)
	if err != nil {
		return err
	}
	certs, err := newCertificates(keys, o)
	if err != nil {
		return err
	}
	lease, err := newLease(rest, direct, o)
	if err != nil {
		return err
	}
	stripped := func(in any) (any, error) {
		if m, ok := in.(client.Object); ok {
			m.SetManagedFields(nil)
		}
		return in, nil
	}
	mgr, err := ctrl.NewManager(rest, ctrl.Options{
		Scheme:                              scheme,
		LeaderElection:                      true,
		LeaderElectionResourceLockInterface: lease,
		LeaderElectionReleaseOnCancel:       true,
		LeaseDuration:                       ptr(leaseDuration),
		RenewDeadline:                       ptr(renewDeadline),
		RetryPeriod:                         ptr(leaseRetry),
		HealthProbeBindAddress:              net.JoinHostPort("", fmt.Sprint(wellknown.HealthPort)),
		Metrics:                             metricsserver.Options{BindAddress: net.JoinHostPort("", fmt.Sprint(wellknown.MetricsPort))},
		WebhookServer:                       webhook.NewServer(webhook.Options{Port: wellknown.WebhookPort, TLSOpts: []func(*tlsConfig){certs.configure}}),
		Cache:                               cache.Options{DefaultTransform: stripped},
		Client:                              client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}, Unstructured: true}},
		GracefulShutdownTimeout:             ptr(3 * time.Second),
	})
	if err != nil {
		return fmt.Errorf("make the controller manager: %w", err)
	}
	config := vif.HubConfig{PrivateKey: keys.wireguard, Addresses: pool.own(), Log: o.Log, Allow: mayReach}
	if o.UDP != "" {
		config.UDPPort = wellknown.WireGuardPort
	}
	hub, err := vif.NewHub(config)
	if err != nil {
		return err
	}
	defer hub.Close()

	agents := newAgents(mgr.GetAPIReader(), direct, o)
	sessions := &sessionReconciler{Client: mgr.GetClient(), reader: mgr.GetAPIReader(), hub: hub, pool: pool, keys: keys, options: o, changed: make(chan sessionEvent, 64)}
	apis, err := discovery.NewDiscoveryClientForConfigAndClient(rest, mgr.GetHTTPClient())
	if err != nil {
		return fmt.Errorf("make the discovery client: %w", err)
	}
	intercepts := &interceptReconciler{Client: mgr.GetClient(), reader: mgr.GetAPIReader(), agents: agents, inject: o.agent(keys.caPEM), options: o, rollouts: &rollouts{discovery: apis, cache: mgr.GetCache(), log: o.Log}}
	if err := sessions.setup(ctx, mgr); err != nil {
		return err
	}
	if err := intercepts.setup(ctx, mgr); err != nil {
		return err
	}
	injector := &injector{options: o, ca: keys.caPEM, log: o.Log, planOfRollout: intercepts.planOfRollout}
	injector.setup(mgr)
	intercepts.webhookAsked = func() time.Time { return time.Unix(injector.asked.Load(), 0) }
	for _, task := range []ctrlmanager.Runnable{
		everyReplica(func(ctx context.Context) error { return serveTunnel(ctx, hub, o) }),
		everyReplica(func(ctx context.Context) error { return agents.serve(ctx, certs) }),
		everyReplica(func(ctx context.Context) error { return serveRelay(ctx, hub, agents, certs, o) }),
		everyReplica(func(ctx context.Context) error { tuning.AdaptGOMAXPROCS(ctx); return nil }),
		everyReplica(sessions.watchPeers),
		everyReplica(intercepts.rollouts.follow),
		everyReplica(func(ctx context.Context) error {
			return serveTail(ctx, hub, &tails{intercepts: intercepts, key: keys.wireguard}, pool.own(), o)
		}),
		everyReplica(func(ctx context.Context) error { return injector.keepBundle(ctx, direct) }),
		ctrlmanager.RunnableFunc(intercepts.firstRound),
	} {
		if err := mgr.Add(task); err != nil {
			return fmt.Errorf("add a task: %w", err)
		}
	}
	if err := errors.Join(mgr.AddHealthzCheck("alive", healthz.Ping), mgr.AddReadyzCheck("webhook", mgr.GetWebhookServer().StartedChecker()), mgr.AddReadyzCheck("authority", injector.checker(time.Now()))); err != nil {
		return fmt.Errorf("add the probes: %w", err)
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	return nil
}

// everyReplica is a task that does not wait for leadership.
type everyReplica func(context.Context) error

func (f everyReplica) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements LeaderElectionRunnable.
func (everyReplica) NeedLeaderElection() bool { return false }

func ptr[T any](v T) *T { return &v }

// mayReach keeps laptops away from the manager's own loopback and from link-local services such as a cloud's metadata.
func mayReach(a netip.Addr) bool {
	a = a.Unmap() // Linux takes ::ffff:0.0.0.0 for its own loopback
	return a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}

// serveTunnel answers the upgrade and hands the connection to the hub.
func serveTunnel(ctx context.Context, hub *vif.Hub, o Options) error {
	server := &http.Server{Addr: net.JoinHostPort("", fmt.Sprint(wellknown.TunnelPort)), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tunnel", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != vif.UpgradeProtocol {
			http.Error(w, "this is detour's tunnel: it wants an upgrade to "+vif.UpgradeProtocol, http.StatusUpgradeRequired)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			o.Log.Warn("taking over the connection failed", "err", err)
			return
		}
		_ = conn.SetDeadline(time.Time{})
		if _, err := conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + vif.UpgradeProtocol + "\r\n\r\n")); err != nil {
			_ = conn.Close()
			return
		}
		if err := hub.ServeStream(ctx, netx.Unbuffered(netx.Wrap(conn), buffered.Reader)); err != nil {
			o.Log.Debug("a tunnel ended", "err", err)
		}
	})
	server.Handler = mux
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the tunnel: %w", err)
	}
	return nil
}
