// Package agent is the traffic-agent: it stands in front of the app's ports in a pod, passes connections on to the app, and
// while an intercept is in force to the laptop. It changes over without failing a request: a live HTTP/1 connection moves at a
// request's boundary, and whenever the laptop cannot be had the app answers.
package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/detour-dev/detour/pkg/traffic/agent/passthrough"
	"github.com/detour-dev/detour/pkg/traffic/agentconfig"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// relayTimeout is how long the laptop may take to accept a connection before the app gets it.
	relayTimeout = 2 * time.Second
	// skipAfterFailure is how long a laptop that did not answer is not asked again, so that requests do not queue behind time-outs.
	skipAfterFailure = time.Second
	appTimeout       = 5 * time.Second
)

// agent is the state of one sidecar.
type agent struct {
	config agentconfig.Config
	log    *slog.Logger
	tls    *tls.Config
	// routes is replaced as a whole: app port -> intercept in force.
	routes  atomic.Pointer[map[uint16]*route]
	changed chan struct{} // tells the passthrough of new routes
	http2   sync.Map      // *connection of HTTP/2 that the passthrough gave away
	conns   sync.WaitGroup

	pendingMu sync.Mutex
	pending   *time.Timer // gives the traffic back to the app when the manager stays away
}

// route is an intercept in force on a port.
type route struct {
	*agentv1.Intercept
	skipUntil atomic.Int64 // Unix nanoseconds
}

// Run serves until ctx ends and the connections are gone.
func Run(ctx context.Context, config agentconfig.Config, log *slog.Logger) error {
	// The app's pod pays for our memory: collect early.
	debug.SetGCPercent(50)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(config.CA)) {
		return errors.New("the configuration has no certificate authority")
	}
	a := &agent{
		config: config, log: log,
		tls: &tls.Config{RootCAs: roots, ServerName: config.Server, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(16)},
	}
	a.changed = make(chan struct{}, 1)
	a.routes.Store(&map[uint16]*route{})

	listeners := map[uint16]*net.TCPListener{}
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	for _, p := range config.Ports {
		l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(p.Agent))))
		if err != nil {
			return fmt.Errorf("listen for port %d: %w", p.App, err)
		}
		listeners[p.App] = l.(*net.TCPListener)
	}
	health := &http.Server{Addr: ":" + strconv.Itoa(agentconfig.HealthPort), ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })}

	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error {
		return passthrough.Serve(ctx, passthrough.Config{
			Listeners: listeners,
			Diverted:  func(port uint16) bool { return a.wanted(port) != nil },
			Take:      func(h passthrough.Handover) { a.take(ctx, h) },
			Changed:   a.changed,
		})
	})
	tasks.Go(func() error {
		if err := health.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve health: %w", err)
		}
		return nil
	})
	tasks.Go(func() error { a.control(ctx); return nil })
	tasks.Go(func() error {
		<-ctx.Done()
		_ = health.Close()
		return nil
	})
	err := tasks.Wait()
	a.conns.Wait()
	return err
}

// take serves a connection that the passthrough gave away.
func (a *agent) take(ctx context.Context, h passthrough.Handover) {
	a.conns.Go(func() {
		conn := &connection{agent: a, client: h.Client, port: h.Port}
		conn.serve(ctx, h.First)
	})
}

// wanted is the intercept that a port's next connection or request belongs to, or nil for the app.
func (a *agent) wanted(port uint16) *route {
	r := (*a.routes.Load())[port]
	if r == nil || time.Now().UnixNano() < r.skipUntil.Load() {
		return nil
	}
	return r
}

// setRoutes puts a configuration in force. Routes that go on keep their state.
func (a *agent) setRoutes(intercepts []*agentv1.Intercept) {
	old := *a.routes.Load()
	routes := make(map[uint16]*route, len(intercepts))
	for _, i := range intercepts {
		port := uint16(i.Port)
		if o := old[port]; o != nil && o.Uid == i.Uid && o.RelayAddress == i.RelayAddress && string(o.Token) == string(i.Token) {
			routes[port] = o
			continue
		}
		routes[port] = &route{Intercept: i}
	}
	a.routes.Store(&routes)
	select {
	case a.changed <- struct{}{}:
	default:
	}
	// Each for itself: a client that takes nothing must not hold up the others.
	a.http2.Range(func(c, _ any) bool { a.conns.Go(c.(*connection).review); return true })
}
