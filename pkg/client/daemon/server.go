// Package daemon is the laptop's side of a session: it holds the VIF, the DNS proxy and the intercepts, and
// serves the command line on a Unix socket. Start with Run and Server.
package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/client/tunnel"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/tuning"
	"github.com/detour-dev/detour/pkg/version"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

const quitTimeout = 20 * time.Second

// Server is the daemon.
type Server struct {
	daemonv1.UnimplementedDaemonServiceServer
	paths ipc.Paths
	log   *slog.Logger
	quit  context.CancelFunc
	// busy ends at once what takes long when somebody wants to quit: it is the context of making sessions.
	busy context.Context //nolint:containedctx // it is the daemon's own
	idle context.CancelFunc

	// mu is held by whatever changes the session: one thing at a time.
	mu      sync.Mutex
	current sync.RWMutex
	session *session
}

// Run serves until Quit or ctx ends, and puts the laptop back.
func Run(ctx context.Context, p ipc.Paths, log *slog.Logger) error {
	listener, err := ipc.Listen(p, func() error {
		if p.Rootless {
			return nil
		}
		return dnsproxy.PutBack(p.Resolver())
	})
	if err != nil {
		return err
	}
	// A daemon started with sudo serves the person who started it.
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil {
		if err := ipc.GrantSocket(p, uid); err != nil {
			log.Warn("only root can use this daemon", "err", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &Server{paths: p, log: log, quit: cancel}
	s.busy, s.idle = context.WithCancel(ctx)
	server := grpc.NewServer(grpc.Creds(ipc.PeerCredentials()))
	daemonv1.RegisterDaemonServiceServer(server, s)
	var kept sync.WaitGroup
	kept.Go(func() { s.keep(s.busy) })
	kept.Go(func() { tuning.AdaptGOMAXPROCS(ctx) })
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
		defer done()
		if _, untold := s.end(ending); untold != nil {
			log.Warn("the cluster was not told of the end", "err", untold)
		}
		finish := time.AfterFunc(2*time.Second, server.Stop)
		defer finish.Stop()
		server.GracefulStop()
	}()
	err = server.Serve(listener)
	cancel()
	<-stopped
	kept.Wait()
	return err
}

func (s *Server) get() *session {
	s.current.RLock()
	defer s.current.RUnlock()
	return s.session
}

func (s *Server) put(n *session) {
	s.current.Lock()
	defer s.current.Unlock()
	s.session = n
}

// end leaves everything and puts the laptop back. It says whether there was something, and why the cluster was not told.
func (s *Server) end(ctx context.Context) (was bool, untold error) {
	s.idle()
	s.mu.Lock()
	defer s.mu.Unlock()
	had := s.get()
	if had == nil {
		return false, nil
	}
	untold = had.close(ctx)
	had.closeInside()
	s.put(nil)
	return true, untold
}

// Connect implements DaemonServiceServer.
func (s *Server) Connect(req *daemonv1.ConnectRequest, stream grpc.ServerStreamingServer[daemonv1.ConnectResponse]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	confined, err := confine(stream.Context(), req.Kubeconfig)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	req.Kubeconfig = confined
	progress := func(text string) { _ = stream.Send(&daemonv1.ConnectResponse{Progress: text}) }
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stop := context.AfterFunc(s.busy, cancel)
	defer stop()
	now := s.get()
	if now != nil && !now.isEnded() {
		config, err := kubeconfig.Unpack(req.Kubeconfig)
		if err != nil {
			return status.Error(codes.Aborted, err.Error())
		}
		where := now.elsewhere(req, config.Host)
		if where == "" {
			if req.HostLoopback && !now.request.HostLoopback {
				return status.Error(codes.FailedPrecondition, "already connected without --host-loopback: run `detour quit` first")
			}
			if req.Transport != "" && req.Transport != cmp.Or(now.request.Transport, tunnel.Auto) {
				return status.Errorf(codes.FailedPrecondition, "already connected without --transport %s: run `detour quit` first", req.Transport)
			}
			if flags := others(req.NetworkOverrides, now.request.NetworkOverrides); len(flags) > 0 {
				return status.Errorf(codes.FailedPrecondition, "already connected with another %s: run `detour quit` first", strings.Join(flags, ", "))
			}
			if now.renews(req) {
				renewed, err := s.renew(ctx, now, req.Kubeconfig, progress)
				if err != nil {
					return status.Error(codes.Aborted, err.Error())
				}
				now = renewed
			}
			return stream.Send(&daemonv1.ConnectResponse{Status: now.status(stream.Context())})
		}
		return status.Errorf(codes.FailedPrecondition, "already connected to %s: run `detour quit` first", where)
	}
	n, err := connect(ctx, req, now, s.paths, s.log, progress)
	if err != nil {
		return status.Error(codes.Aborted, err.Error())
	}
	n.succeed(now)
	s.put(n)
	n.resume(ctx)
	return stream.Send(&daemonv1.ConnectResponse{Status: n.status(stream.Context())})
}

// elsewhere says where a session leads to when that is not what is asked for. Contexts of two kubeconfigs may be called alike: many clusters have
// one that is called "default".
func (s *session) elsewhere(req *daemonv1.ConnectRequest, server string) string {
	switch where := fmt.Sprintf("namespace %s of context %s", s.namespace, s.context); {
	case s.context != req.Context || s.namespace != req.Namespace:
		return where
	case s.server != server:
		return where + " at " + s.server
	}
	return ""
}

// confine limits a kubeconfig to the rights of the caller. The daemon may be root's, and it runs and
// reads what the kubeconfig names, also when it restores the session later.
func confine(ctx context.Context, raw []byte) ([]byte, error) {
	caller, err := ipc.Caller(ctx)
	if err != nil || ipc.IsTrusted(caller) {
		return raw, err
	}
	return kubeconfig.Confine(raw, caller)
}

// Status implements DaemonServiceServer.
func (s *Server) Status(ctx context.Context, _ *daemonv1.StatusRequest) (*daemonv1.StatusResponse, error) {
	if now := s.get(); now != nil {
		return now.status(ctx), nil
	}
	return &daemonv1.StatusResponse{ClientVersion: version.Version}, nil
}

// Intercept implements DaemonServiceServer.
func (s *Server) Intercept(req *daemonv1.InterceptRequest, stream grpc.ServerStreamingServer[daemonv1.InterceptResponse]) error {
	now := s.get()
	if now == nil {
		return status.Error(codes.FailedPrecondition, "not connected: run `detour connect` first")
	}
	if now.isEnded() {
		return status.Error(codes.FailedPrecondition, now.status(stream.Context()).Problem)
	}
	i, err := now.intercept(stream.Context(), req, func(m *daemonv1.InterceptResponse) { _ = stream.Send(m) })
	if err != nil {
		return status.Error(codes.Aborted, err.Error())
	}
	return stream.Send(&daemonv1.InterceptResponse{Intercept: i})
}

// Leave implements DaemonServiceServer.
func (s *Server) Leave(ctx context.Context, req *daemonv1.LeaveRequest) (*daemonv1.LeaveResponse, error) {
	now := s.get()
	if now == nil {
		return nil, status.Error(codes.FailedPrecondition, "not connected: there is no intercept to leave")
	}
	left, err := now.leave(ctx, req)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return &daemonv1.LeaveResponse{Intercepts: left}, nil
}

// Tail implements DaemonServiceServer.
func (s *Server) Tail(req *tailv1.TailRequest, stream grpc.ServerStreamingServer[tailv1.TailResponse]) error {
	now := s.get()
	if now == nil || now.isEnded() {
		return status.Error(codes.FailedPrecondition, "not connected: run `detour connect` first")
	}
	return now.tail(req, stream)
}

// Quit implements DaemonServiceServer.
func (s *Server) Quit(ctx context.Context, _ *daemonv1.QuitRequest) (*daemonv1.QuitResponse, error) {
	was, untold := s.end(ctx)
	s.quit()
	r := &daemonv1.QuitResponse{WasConnected: was}
	if untold != nil {
		r.NotDeleted = explain.Error(untold, "delete the session").Error()
	}
	return r, nil
}

// others lists the flags that were given and are not what the session was made with.
func others(wanted, has *daemonv1.NetworkOverrides) (flags []string) {
	for _, f := range []struct {
		name        string
		wanted, has []string
	}{
		{"--also-proxy", wanted.GetAlsoProxy(), has.GetAlsoProxy()},
		{"--never-proxy", wanted.GetNeverProxy(), has.GetNeverProxy()},
		{"--map-subnet", wanted.GetMapSubnet(), has.GetMapSubnet()},
		{"--include-suffix", wanted.GetIncludeSuffix(), has.GetIncludeSuffix()},
		{"--exclude-suffix", wanted.GetExcludeSuffix(), has.GetExcludeSuffix()},
		{"--map", wanted.GetMap(), has.GetMap()},
	} {
		if len(f.wanted) > 0 && !slices.Equal(f.wanted, f.has) {
			flags = append(flags, f.name)
		}
	}
	return flags
}
