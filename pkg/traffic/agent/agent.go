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
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/passthrough"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
	"github.com/detour-dev/detour/pkg/traffic/keeper"
	"github.com/detour-dev/detour/pkg/tuning"
)

const (
	appTimeout = 5 * time.Second
	// readyAfter is when an agent is ready that has not heard its manager: the app must not wait for it longer.
	readyAfter = 5 * time.Second
	// silence is how long a client may say nothing before the app gets the chance to speak first.
	silence = 250 * time.Millisecond
)

// agent is the state of one sidecar.
type agent struct {
	config agentconfig.Config
	log    *slog.Logger
	tls    *tls.Config
	// tables is replaced as a whole: app port -> intercepts in force.
	tables  atomic.Pointer[map[uint16]*table]
	changed chan struct{} // tells the passthrough of new tables
	found   chan struct{} // tells the manager of what is known of a port now
	framed  sync.Map      // connections of HTTP/2, which can be asked to leave
	ports   ports
	report  *report
	copies  budget // bytes that wait for laptops that get copies
	heads   budget // bytes of heads that have not come as a whole

	headTimeout time.Duration
	clients     sync.WaitGroup // their connections
	conns       sync.WaitGroup // what else runs
	started     time.Time
	told        atomic.Bool // by the manager what is in force

	attachment *attachment // nil in a sidecar

	podEnding atomic.Bool     // the pod ends, or nobody needs this agent: clients are to go elsewhere
	stopping  context.Context // and so does the agent, once this is done
	stop      context.CancelFunc

	life    context.Context // of all that is under way
	endLife context.CancelFunc

	pendingMu sync.Mutex
	pending   *time.Timer // gives the traffic back to the app when the manager stays away
}

// Run serves until ctx ends, and then what is under way for a while.
func Run(ctx context.Context, config agentconfig.Config, log *slog.Logger) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(config.CA)) {
		return errors.New("the configuration has no certificate authority")
	}
	a := newAgent(&tls.Config{RootCAs: roots, ServerName: config.Server, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(16), DynamicRecordSizingDisabled: true}, log)
	a.config = config
	a.ports = newPorts(config)

	listeners := map[uint16]*net.TCPListener{}
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	var udp []*datagrams
	for _, p := range config.Ports {
		if p.Datagrams {
			sockets, err := listenUDP(ctx, p.Agent)
			if err != nil {
				return err
			}
			udp = append(udp, a.newDatagrams(p.App, sockets))
			continue
		}
		l, err := keeper.Listen(p.Agent)
		if err != nil {
			return fmt.Errorf("listen for port %d: %w", p.App, err)
		}
		listeners[p.App] = l.(*net.TCPListener)
	}
	live := a.serveHealth
	if config.Attached != nil {
		if err := a.attach(listeners); err != nil {
			return err
		}
		defer a.attachment.close()
		live = a.endUnused // its pod is ready or not without it
	}

	stop := context.AfterFunc(ctx, func() { a.attachment.withdraw(); a.stop() })
	defer stop()
	tasks, ctx := errgroup.WithContext(context.WithoutCancel(ctx))
	tasks.Go(func() error {
		if err := a.accept(ctx, listeners); err != nil {
			return err
		}
		return errEnded
	})
	tasks.Go(func() error { return live(ctx) })
	for _, d := range udp {
		tasks.Go(func() error { d.serve(ctx); return nil })
	}
	tasks.Go(func() error { a.control(ctx); return nil })
	tasks.Go(func() error { a.refresh(ctx); return nil })
	tasks.Go(func() error { tuning.LimitMemory(ctx); return nil })
	err := tasks.Wait()
	a.endLife()
	a.conns.Wait()
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// errEnded ends the tasks of an agent that has done what there was to do.
var errEnded = errors.New("ended")

// accept serves connections until the agent has to stop, and then what is under way for a while.
func (a *agent) accept(ctx context.Context, listeners map[uint16]*net.TCPListener) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	stopped := context.AfterFunc(a.stopping, func() {
		a.podEnds()
		time.AfterFunc(endTimeout, end)
	})
	defer stopped()
	err := passthrough.Serve(ctx, a.passthrough(ctx, listeners))
	a.clients.Wait()
	return err
}

func newAgent(tls *tls.Config, log *slog.Logger) *agent {
	a := &agent{log: log, tls: tls, started: time.Now(), changed: make(chan struct{}, 1), found: make(chan struct{}, 1), report: newReport(), copies: budget{limit: tapsLimit}, heads: budget{limit: headsLimit}, headTimeout: headTimeout}
	a.tables.Store(&map[uint16]*table{})
	a.life, a.endLife = context.WithCancel(context.Background())
	a.stopping, a.stop = context.WithCancel(context.Background())
	return a
}

// serveHealth answers the kubelet, and the preStop hook of this pod.
func (a *agent) serveHealth(ctx context.Context) error {
	listener, err := keeper.Listen(agentconfig.HealthPort)
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", a.healthz)
	mux.HandleFunc("POST "+podEndsPath, a.servePodEnds)
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: mux}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health: %w", err)
	}
	return nil
}

// healthz keeps a new pod out of its service until it knows the intercepts in force: its first request may be somebody's.
func (a *agent) healthz(w http.ResponseWriter, _ *http.Request) {
	if !a.told.Load() && time.Since(a.started) < readyAfter {
		http.Error(w, "the traffic-manager has not said what is in force yet", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// passthrough is what the passthrough needs to know of this agent.
func (a *agent) passthrough(ctx context.Context, listeners map[uint16]*net.TCPListener) passthrough.Config {
	return passthrough.Config{
		Listeners: listeners, Owner: a.owner, Choose: a.chooseEarly, Changed: a.changed, Stop: a.stopping.Done(),
		Take: func(h passthrough.Handover) { a.take(ctx, h) },
	}
}

// take serves a connection that the passthrough gave away.
func (a *agent) take(ctx context.Context, h passthrough.Handover) {
	a.clients.Go(func() {
		defer h.Client.Close()
		stop := context.AfterFunc(ctx, func() { netx.Abort(h.Client) }) // what is cut must not look whole
		defer stop()
		a.serve(ctx, h)
	})
}

// handover is a connection that has to be served by somebody: of which something was read, and which may have an upstream.
type handover struct {
	first   []byte // what was read from the client
	up      *upstream
	used    bool        // up has served requests
	head    *http1.Head // of the request that first begins with, if it was parsed already
	choice  *choice     // what becomes of that request
	refused bool        // the laptop is unreachable and the app must not answer: a client of HTTP can be told
	opaque  bool        // first does not begin a request that can be understood
}

// serve serves a connection that the passthrough has handed over, to its end.
func (a *agent) serve(ctx context.Context, h passthrough.Handover) {
	next := &handover{first: h.First, used: h.Used, head: h.Head}
	next.choice, _ = h.Choice.(*choice)
	if h.App != nil {
		next.up = &upstream{Conn: h.App}
	}
	for next != nil {
		next = a.serveOnce(ctx, h.Client, h.Port, next)
	}
}

// serveOnce serves a connection request by request if it is HTTP, and else as raw bytes. It returns who has to serve it on, or nil.
func (a *agent) serveOnce(ctx context.Context, client *net.TCPConn, port uint16, h *handover) *handover {
	byRequest := a.personal(port) || h.refused
	if byRequest && !h.opaque && len(h.first) == 0 {
		h.first = sniffed(client)
	}
	protocol := sniff.Classify(h.first)
	raw := &rawConn{agent: a, client: client, port: port, opaque: h.opaque}
	switch {
	case h.opaque:
		return raw.serve(ctx, h.first, h.up)
	case byRequest && tlspeek.StartsTLS(h.first):
		if a.serveTLS(ctx, client, port, h) {
			return nil
		}
		a.conns.Go(func() { a.lookAgain(ctx, port) })
		return &handover{first: h.first, up: h.up, opaque: true}
	case protocol == sniff.HTTP2 && (byRequest || h.up != nil):
		a.serveHTTP2(client, port, h.first, h.up)
		return nil
	case protocol == sniff.HTTP1, byRequest && sniff.BeginsRequest(h.first):
		return a.newExchange(client, port, h).serve(ctx)
	case h.refused:
		netx.Abort(client) // not HTTP, so nobody can tell the client why
		return nil
	default:
		return raw.serve(ctx, h.first, h.up)
	}
}

// sniffed is what a client says first; nothing when it waits for the app to speak.
func sniffed(client *net.TCPConn) []byte {
	_ = client.SetReadDeadline(time.Now().Add(silence))
	defer func() { _ = client.SetReadDeadline(time.Time{}) }()
	b := make([]byte, 4<<10)
	n, _ := client.Read(b)
	return b[:n]
}
