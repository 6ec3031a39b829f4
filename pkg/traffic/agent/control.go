package agent

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/version"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	reconnectMin = 200 * time.Millisecond
	reconnectMax = 2 * time.Second
	// connectTimeout is how long a manager may take to answer a dial. Where it has just ended nobody does.
	connectTimeout = 3 * time.Second
	// forgetAfter is how long the last configuration holds without a manager. Then the app answers again, and after forgetAllAfter also where it must not: a
	// session without its laptop lives no longer by default, with a manager.
	forgetAfter    = 10 * time.Second
	forgetAllAfter = 10 * time.Minute
)

// control keeps the stream to the manager and puts what it says in force.
func (a *agent) control(ctx context.Context) {
	backoff := netx.Backoff{Min: reconnectMin, Max: reconnectMax, Jitter: true}
	for ctx.Err() == nil {
		started := time.Now()
		err := a.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > reconnectMax {
			backoff.Reset()
		}
		pause := backoff.Next()
		a.log.Info("the traffic-manager is not reachable, trying again", "err", err, "in", pause)
		a.lost()
		_ = netx.Sleep(ctx, pause)
	}
}

// lost starts the clock at the first failure.
func (a *agent) lost() {
	a.pendingMu.Lock()
	defer a.pendingMu.Unlock()
	if a.pending == nil {
		a.unlessHeard(forgetAfter, a.forget)
	}
}

// unlessHeard does something after a while if the manager has not spoken by then; pendingMu is held.
func (a *agent) unlessHeard(after time.Duration, do func()) {
	var own *time.Timer
	own = time.AfterFunc(after, func() {
		a.pendingMu.Lock()
		defer a.pendingMu.Unlock()
		if a.pending == own && a.life.Err() == nil {
			do()
		}
	})
	a.pending = own
}

// forget has the app answer what is not kept from it; pendingMu is held.
func (a *agent) forget() {
	var kept []*agentv1.Intercept
	for _, t := range *a.tables.Load() {
		for _, o := range t.all() {
			if o.ErrorOnFailure && !o.Wiretap {
				kept = append(kept, o.current())
			}
		}
	}
	a.setRoutes(kept)
	if len(kept) > 0 {
		a.unlessHeard(forgetAllAfter-forgetAfter, func() { a.setRoutes(nil) })
	}
}

// heard stops the clock, because the manager has spoken, and puts in force what it says.
func (a *agent) heard(c *agentv1.Config) {
	a.pendingMu.Lock()
	defer a.pendingMu.Unlock()
	if a.pending != nil {
		a.pending.Stop()
		a.pending = nil
	}
	a.setRoutes(c.Intercepts, c.Tailed...)
}

// session is one stream: hello, then a configuration for each answer.
func (a *agent) session(ctx context.Context) error {
	file := agentconfig.TokenFile
	if at := a.config.Attached; at != nil {
		file = at.Token
		ctx = metadata.AppendToOutgoingContext(ctx, agentconfig.AttachedHeader, "yes")
	}
	token, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(a.config.Manager, grpc.WithTransportCredentials(credentials.NewTLS(a.tls.Clone())),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token)))
	stream, err := agentv1.NewAgentServiceClient(conn).Connect(ctx)
	if err != nil {
		return err
	}
	hello := &agentv1.Hello{Version: version.Version}
	for _, p := range a.config.Ports {
		hello.Ports = append(hello.Ports, uint32(p.App))
	}
	if err := stream.Send(&agentv1.AgentMessage{Message: &agentv1.AgentMessage_Hello{Hello: hello}}); err != nil {
		return err
	}
	// A stream takes one message at a time.
	var sending sync.Mutex
	send := func(m *agentv1.AgentMessage) error {
		sending.Lock()
		defer sending.Unlock()
		return stream.Send(m)
	}
	var generation uint64
	applied := func(now uint64) error {
		sending.Lock()
		defer sending.Unlock()
		generation = max(generation, now)
		return stream.Send(&agentv1.AgentMessage{Message: &agentv1.AgentMessage_Applied{Applied: &agentv1.Applied{Generation: generation, Ports: a.ports.states()}}})
	}
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel()
	telling.Go(func() { a.report.run(ctx, send) })
	telling.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-a.found:
				_ = applied(0) // Recv says what is wrong with the stream
			}
		}
	})
	for {
		config, err := stream.Recv()
		if err != nil {
			return err
		}
		a.heard(config)
		a.told.Store(true)
		a.look(ctx)
		if err := applied(config.Generation); err != nil {
			return err
		}
	}
}
