package manager

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrlmanager "sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/traffic/manager/agents"
	"github.com/detour-dev/detour/pkg/traffic/manager/intercept"
	"github.com/detour-dev/detour/pkg/traffic/manager/session"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// staleAfter and sessionTTL are short, so that a laptop is given up while a test waits for it.
	staleAfter = time.Second
	sessionTTL = 5 * time.Second
)

// agentOptions are what agents are created with.
var agentOptions = inject.Options{Image: "agent", Manager: "manager:8082", Server: "manager", CA: []byte("authority")}

// The tests share one API server and one manager, and each has a namespace of its own.
var (
	api       client.Client
	clientset *kubernetes.Clientset
	laptops   = &tunnel{received: map[wgkey.Key]time.Time{}, reset: map[wgkey.Key]int{}}
	agentAPI  struct {
		address        string
		server, client *tls.Config
	}
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

// program returns the path of a program of the local cluster.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(home, ".cache/detour/cluster/bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not compiled yet: run bin/cluster build (%w)", name, err)
	}
	return path, nil
}

func run(m *testing.M) (code int, err error) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler))
	apiServer, err := program("kube-apiserver")
	if err != nil {
		return 0, err
	}
	etcd, err := program("etcd")
	if err != nil {
		return 0, err
	}
	environment := &envtest.Environment{
		CRDDirectoryPaths: []string{"../../manifests/chart/definitions"}, ErrorIfCRDPathMissing: true,
		ControlPlane: envtest.ControlPlane{
			APIServer: &envtest.APIServer{Path: apiServer}, Etcd: &envtest.Etcd{Path: etcd},
		},
	}
	config, err := environment.Start()
	if err != nil {
		return 0, errors.Join(err, environment.Stop())
	}
	defer func() { err = errors.Join(err, environment.Stop()) }()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	mgr, err := newManager(ctx, config)
	if err != nil {
		return 0, err
	}
	failed := make(chan error, 1)
	running.Go(func() { failed <- mgr.Start(ctx) })
	if !mgr.GetCache().WaitForCacheSync(ctx) {
		return 0, fmt.Errorf("the manager does not start: %w", <-failed)
	}
	return m.Run(), nil
}

// newManager makes the traffic-manager without its tunnel, webhook and relay.
func newManager(ctx context.Context, config *rest.Config) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(detour.AddToScheme(scheme))
	config.QPS, config.Burst = 500, 1000
	var err error
	if api, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	if clientset, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"}})
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	registry := agents.New(agents.Config{Reader: api, Reviewer: api, RelayAddress: "192.0.2.1:8083", Log: log})
	pool, err := session.ParsePool("198.18.0.0/24")
	if err != nil {
		return nil, err
	}
	private, err := wgkey.NewPrivate()
	if err != nil {
		return nil, err
	}
	sessions := session.New(session.Config{
		Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Tunnel: laptops, Pool: pool, PublicKey: private.Public(),
		PodName: "manager-1", PodNamespace: "detour-system", ClusterDomain: "cluster.local",
		StaleAfter: staleAfter, TTL: sessionTTL, Log: log,
	})
	apis, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	intercepts := intercept.New(intercept.Config{
		Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Agents: registry, Initial: registry.Initial,
		Inject: agentOptions, Cache: mgr.GetCache(), Discovery: apis, WebhookCalled: time.Now, Log: log,
	})
	if err := errors.Join(sessions.Setup(ctx, mgr), intercepts.Setup(ctx, mgr)); err != nil {
		return nil, err
	}
	l := listener()
	return mgr, errors.Join(
		mgr.Add(ctrlmanager.RunnableFunc(sessions.WatchPeers)),
		mgr.Add(ctrlmanager.RunnableFunc(intercepts.RunInitialSync)),
		mgr.Add(ctrlmanager.RunnableFunc(func(ctx context.Context) error { return serveAgents(ctx, registry, l) })),
	)
}

// listener opens the port where agents connect, and notes where that is.
func listener() net.Listener {
	issuer := httptest.NewUnstartedServer(nil)
	issuer.StartTLS() // for its certificate
	defer issuer.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	agentAPI.address = l.Addr().String()
	agentAPI.server = issuer.TLS.Clone()
	agentAPI.server.NextProtos = nil
	agentAPI.client = issuer.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	agentAPI.client.ServerName = "example.com"
	return l
}

func serveAgents(ctx context.Context, registry *agents.Registry, l net.Listener) error {
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(agentAPI.server)))
	agentv1.RegisterAgentServiceServer(server, registry)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	return server.Serve(l)
}

// tunnel stands for the laptops' tunnels: a laptop is connected while keepAlive was called for its
// key within staleAfter.
type tunnel struct {
	// mu guards the fields below.
	mu       sync.Mutex
	received map[wgkey.Key]time.Time
	reset    map[wgkey.Key]int
}

func (t *tunnel) LastReceived(k wgkey.Key) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.received[k]
}

func (t *tunnel) Connected(k wgkey.Key, within time.Duration) bool {
	last := t.LastReceived(k)
	return !last.IsZero() && time.Since(last) <= within
}

func (t *tunnel) SetPeers([]vif.Peer) error { return nil }

func (t *tunnel) ResetRelayed(k wgkey.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset[k]++
}

func (t *tunnel) keepAlive(k wgkey.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.received[k] = time.Now()
}
