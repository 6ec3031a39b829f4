// Package control keeps the stream to the traffic-manager, which tells the agent the intercepts in
// force. Start with Client.
package control

import (
	"context"
	"crypto/tls"
	"log/slog"
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
	// connectTimeout is how long a manager may take to answer a dial. A manager that has just ended
	// does not.
	connectTimeout = 3 * time.Second
)

// Handler is what the agent does with what the manager says.
type Handler interface {
	// Apply puts a configuration in force before it returns.
	Apply(ctx context.Context, c *agentv1.Config)
	// Lost is called when the manager cannot be reached, again for each attempt.
	Lost()
	// PortStates returns what is known of the TLS of the app's ports. The manager is told after
	// each Apply and when StatesChanged has an element.
	PortStates() []*agentv1.PortState
	StatesChanged() <-chan struct{}
	// SendReports sends reports until ctx ends or send fails.
	SendReports(ctx context.Context, send func(*agentv1.Report) error)
}

// Client keeps the stream to the traffic-manager.
type Client struct {
	Config  agentconfig.Config
	TLS     *tls.Config // authenticates the manager
	Log     *slog.Logger
	Handler Handler
}

// Run connects again and again until ctx ends.
func (c *Client) Run(ctx context.Context) {
	pauses := netx.Backoff{Min: reconnectMin, Max: reconnectMax, Jitter: true}
	for ctx.Err() == nil {
		started := time.Now()
		err := c.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > reconnectMax {
			pauses.Reset()
		}
		pause := pauses.Next()
		c.Log.Info("the traffic-manager is unreachable, trying again", "err", err, "duration", pause)
		c.Handler.Lost()
		_ = netx.Sleep(ctx, pause)
	}
}

// connect serves one stream: it sends hello, then a confirmation for each configuration that it
// receives.
func (c *Client) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, err := c.authenticate(ctx)
	if err != nil {
		return err
	}
	conn, err := c.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	grpcStream, err := agentv1.NewAgentServiceClient(conn).Connect(ctx)
	if err != nil {
		return err
	}
	s := &stream{grpc: grpcStream, handler: c.Handler}
	if err := s.sendHello(c.Config); err != nil {
		return err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	sending.Go(func() {
		c.Handler.SendReports(ctx, func(r *agentv1.Report) error {
			return s.send(&agentv1.AgentMessage{Message: &agentv1.AgentMessage_Report{Report: r}})
		})
	})
	sending.Go(func() { s.sendStates(ctx) })
	for {
		config, err := grpcStream.Recv()
		if err != nil {
			return err
		}
		c.Handler.Apply(ctx, config)
		if err := s.confirm(config.Generation); err != nil {
			return err
		}
	}
}

// authenticate returns ctx with the token of this pod, or of the container that is attached to it.
func (c *Client) authenticate(ctx context.Context) (context.Context, error) {
	file := agentconfig.TokenFile
	if at := c.Config.Attached; at != nil {
		file = at.Token
		ctx = metadata.AppendToOutgoingContext(ctx, agentconfig.AttachedHeader, "yes")
	}
	token, err := os.ReadFile(file)
	if err != nil {
		return ctx, err
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token))), nil
}

func (c *Client) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient(c.Config.Manager,
		grpc.WithTransportCredentials(credentials.NewTLS(c.TLS.Clone())),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
}

// stream is one stream to a manager.
type stream struct {
	grpc    agentv1.AgentService_ConnectClient
	handler Handler

	// mu guards the fields below, and sending: gRPC takes one message at a time.
	mu         sync.Mutex
	generation uint64 // the highest that was applied
}

func (s *stream) send(m *agentv1.AgentMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.grpc.Send(m)
}

func (s *stream) sendHello(config agentconfig.Config) error {
	hello := &agentv1.Hello{Version: version.Version}
	for _, p := range config.Ports {
		hello.Ports = append(hello.Ports, uint32(p.App))
	}
	return s.send(&agentv1.AgentMessage{Message: &agentv1.AgentMessage_Hello{Hello: hello}})
}

// confirm tells the manager the generation that is in force, and the states of ports.
func (s *stream) confirm(generation uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation = max(s.generation, generation)
	applied := &agentv1.Applied{Generation: s.generation, Ports: s.handler.PortStates()}
	return s.grpc.Send(&agentv1.AgentMessage{Message: &agentv1.AgentMessage_Applied{Applied: applied}})
}

// sendStates sends the states of ports whenever they change, until ctx ends.
func (s *stream) sendStates(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.handler.StatesChanged():
			_ = s.confirm(0) // Recv returns what is wrong with the stream
		}
	}
}
