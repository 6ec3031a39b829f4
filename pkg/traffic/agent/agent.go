// Package agent is the traffic-agent. It stands in front of the app's ports in a pod and passes
// connections on to the app, or to a laptop while an intercept is in force. It moves traffic over
// without failing a request: HTTP moves between two requests, and the app answers whenever the
// laptop is unreachable.
//
// Start with Run, which wires the parts together, and serve, which decides who serves a connection:
//
//   - passthrough joins clients to the app with epoll, and hands over the connections that may
//     belong elsewhere.
//   - exchange serves HTTP/1 request by request, h2 serves HTTP/2, raw passes on everything else.
//   - apptls ends the TLS of clients where requests have to be told apart.
//   - intercepts decides whose a request is; upstream and laptop connect to the app and to laptops.
//   - copies, report, udp, attach and control are what their names say.
package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/traffic/agent/apptls"
	"github.com/detour-dev/detour/pkg/traffic/agent/attach"
	"github.com/detour-dev/detour/pkg/traffic/agent/budget"
	"github.com/detour-dev/detour/pkg/traffic/agent/control"
	"github.com/detour-dev/detour/pkg/traffic/agent/copies"
	"github.com/detour-dev/detour/pkg/traffic/agent/exchange"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/passthrough"
	"github.com/detour-dev/detour/pkg/traffic/agent/report"
	"github.com/detour-dev/detour/pkg/traffic/agent/udp"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
	"github.com/detour-dev/detour/pkg/traffic/keeper"
	"github.com/detour-dev/detour/pkg/tuning"
)

// tlsSessions is how many TLS sessions with relays are kept for resumption.
const tlsSessions = 16

// agent is the state of one sidecar, or of one ephemeral container that is attached to a pod.
type agent struct {
	config agentconfig.Config
	log    *slog.Logger
	tls    *tls.Config // authenticates the manager and the relay
	dialer upstream.Dialer

	table      *intercepts.Table
	manager    *managerWatch
	ports      *apptls.Ports
	report     *report.Report
	limits     limits
	attachment *attach.Attachment // nil in a sidecar

	changed   chan struct{} // tells the passthrough of a change
	reviewers sync.Map      // the raw.Reviewers, which are told too
	life      lifecycle
}

// limits bound what all connections of the agent hold together.
type limits struct {
	copies      *budget.Budget
	heads       *budget.Budget
	headTimeout time.Duration
}

// lifecycle is how far the agent is with its end. See drain.go.
type lifecycle struct {
	podEnding atomic.Bool // the pod ends, or nobody needs this agent: clients are to open another connection

	stopping context.Context // ends when the agent has to end
	stop     context.CancelFunc
	all      context.Context // of all requests
	endAll   context.CancelFunc

	clients sync.WaitGroup // their connections
	tasks   sync.WaitGroup // all other goroutines of connections
}

// newAgent returns an agent that serves nothing yet, has no ports and no intercepts.
func newAgent(tls *tls.Config, log *slog.Logger) *agent {
	a := &agent{
		log: log, tls: tls, dialer: upstream.Dialer{Log: log},
		changed: make(chan struct{}, 1),
		report:  report.New(),
		ports:   apptls.NewPorts(agentconfig.Config{}, log),
		limits: limits{
			copies:      budget.New(copies.MaxTotal),
			heads:       budget.New(exchange.MaxIncompleteHeads),
			headTimeout: exchange.DefaultHeadTimeout,
		},
	}
	a.life.all, a.life.endAll = context.WithCancel(context.Background())
	a.life.stopping, a.life.stop = context.WithCancel(context.Background())
	a.table = intercepts.New(a.life.all, intercepts.Config{
		TLS: tls, Log: log, Go: a.life.tasks.Go, OnChange: a.onChange, OnEnd: a.report.Forget, OnLost: a.report.Drop,
	})
	a.manager = &managerWatch{table: a.table, life: a.life.all, started: time.Now()}
	return a
}

// Run serves until ctx ends, and then finishes the requests that are in progress, for endTimeout at
// most. It returns when all that it started has ended.
func Run(ctx context.Context, config agentconfig.Config, log *slog.Logger) error {
	log = log.With("component", "agent")
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(config.CA)) {
		return errors.New("the configuration has no certificate authority")
	}
	a := newAgent(&tls.Config{
		RootCAs: roots, ServerName: config.Server, MinVersion: tls.VersionTLS13,
		ClientSessionCache: tls.NewLRUClientSessionCache(tlsSessions), DynamicRecordSizingDisabled: true,
	}, log)
	a.config, a.ports = config, apptls.NewPorts(config, log)
	listeners, datagrams, err := a.listen(ctx)
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	if err != nil {
		return err
	}
	alive := a.serveHealth
	if config.Attached != nil {
		if err := a.attach(listeners); err != nil {
			return err
		}
		defer a.attachment.Close()
		alive = a.endUnused // the pod is ready or not without an attached agent
	}
	stop := context.AfterFunc(ctx, func() { a.attachment.Withdraw(); a.life.stop() })
	defer stop()
	tasks, ctx := errgroup.WithContext(context.WithoutCancel(ctx))
	tasks.Go(func() error {
		if err := a.accept(ctx, listeners); err != nil {
			return err
		}
		return errEnded
	})
	tasks.Go(func() error { return alive(ctx) })
	for _, d := range datagrams {
		tasks.Go(func() error { d.Serve(ctx); return nil })
	}
	client := control.Client{Config: config, TLS: a.tls, Log: log, Handler: a}
	tasks.Go(func() error { client.Run(ctx); return nil })
	tasks.Go(func() error { a.ports.Refresh(ctx); return nil })
	tasks.Go(func() error { tuning.LimitMemory(ctx); return nil })
	err = tasks.Wait()
	a.life.endAll()
	a.life.tasks.Wait()
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// errEnded ends the tasks of an agent that has finished all requests.
var errEnded = errors.New("ended")

// listen opens the sockets of the configuration. With an error it returns those that it has opened
// already.
func (a *agent) listen(ctx context.Context) (map[uint16]*net.TCPListener, []*udp.Port, error) {
	listeners := map[uint16]*net.TCPListener{}
	var datagrams []*udp.Port
	for _, p := range a.config.Ports {
		if p.Datagrams {
			sockets, err := udp.Listen(ctx, p.Agent)
			if err != nil {
				return listeners, datagrams, err
			}
			datagrams = append(datagrams, a.newUDPPort(p.App, sockets))
			continue
		}
		l, err := keeper.Listen(p.Agent)
		if err != nil {
			return listeners, datagrams, fmt.Errorf("listen for port %d: %w", p.App, err)
		}
		listeners[p.App] = l.(*net.TCPListener)
	}
	return listeners, datagrams, nil
}

func (a *agent) newUDPPort(port uint16, sockets []*udp.Socket) *udp.Port {
	return udp.New(udp.Config{Port: port, Log: a.log, Owner: func() *intercepts.Target {
		if p := a.table.Port(port); p != nil {
			return p.Datagrams
		}
		return nil
	}}, sockets)
}

// accept serves connections until the agent has to stop, and then finishes the requests that are in
// progress, for endTimeout at most.
func (a *agent) accept(ctx context.Context, listeners map[uint16]*net.TCPListener) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	stopped := context.AfterFunc(a.life.stopping, func() {
		a.podEnds()
		time.AfterFunc(endTimeout, end)
	})
	defer stopped()
	err := passthrough.Serve(ctx, passthrough.Config{
		Listeners: listeners,
		Policy:    a.passthroughPolicy,
		Choose:    a.chooseEarly,
		HandOver:  func(h passthrough.Handover) { a.take(ctx, h) },
		Changes:   a.changed,
		Stop:      a.life.stopping.Done(),
	})
	a.life.clients.Wait()
	return err
}

// onChange makes all open connections check where they belong now.
func (a *agent) onChange() {
	if a.attachment != nil {
		if len(a.table.Ports()) > 0 && a.life.stopping.Err() == nil {
			a.life.podEnding.Store(false) // the agent is needed again
		}
		a.attachment.Follow(func(port uint16) bool { return a.table.Port(port) != nil })
	}
	a.tellConnections()
}

func (a *agent) tellConnections() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
	a.review()
}
