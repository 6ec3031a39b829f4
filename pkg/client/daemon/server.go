// Package daemon is the laptop's side of a session. It serves the command line on a Unix socket and
// holds one session, whose parts are the packages below it: the client and watch of the cluster,
// the network, the intercepts, and the server for relayed connections. Start with Run and Server.
package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"os"
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
	"github.com/detour-dev/detour/pkg/client/overrides"
	"github.com/detour-dev/detour/pkg/client/tunnel"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/tuning"
	"github.com/detour-dev/detour/pkg/version"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

const (
	// quitTimeout bounds how long the daemon takes to restore the laptop and delete its session.
	quitTimeout = 20 * time.Second
	// stopTimeout is how long calls may go on once the session is closed.
	stopTimeout = 2 * time.Second
)

// Server is the daemon.
type Server struct {
	daemonv1.UnimplementedDaemonServiceServer
	paths ipc.Paths
	log   *slog.Logger
	quit  context.CancelFunc
	// busy is the context of making sessions. idle ends it, so that a user who disconnects does not
	// wait.
	busy context.Context //nolint:containedctx // it is the daemon's own
	idle context.CancelFunc

	// changing is held while the session is replaced or closed. Lock it before current.
	changing sync.Mutex

	// current guards the field below.
	current sync.RWMutex
	session *session
}

// Run serves until Quit is called or ctx ends, and then restores the laptop.
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
	// A daemon started with sudo serves the user who ran sudo.
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil {
		if err := ipc.GrantSocket(p, uid); err != nil {
			log.Warn("only root can use this daemon", "err", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &Server{paths: p, log: log, quit: cancel}
	log = log.With("component", "daemon") // connect adds the components of its parts to s.log
	s.busy, s.idle = context.WithCancel(ctx)
	server := grpc.NewServer(grpc.Creds(ipc.PeerCredentials()))
	daemonv1.RegisterDaemonServiceServer(server, s)
	var running sync.WaitGroup
	running.Go(func() { s.supervise(s.busy) })
	running.Go(func() { tuning.AdaptGOMAXPROCS(ctx) })
	running.Go(func() {
		<-ctx.Done()
		ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
		defer done()
		if _, err := s.disconnect(ending); err != nil {
			log.Warn("the session may still be in the cluster", "err", err)
		}
		finish := time.AfterFunc(stopTimeout, server.Stop)
		defer finish.Stop()
		server.GracefulStop()
	})
	err = server.Serve(listener)
	cancel()
	running.Wait()
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

// disconnect leaves all intercepts and restores the laptop. was reports whether there was a
// session. The error says why the session may still be in the cluster.
func (s *Server) disconnect(ctx context.Context) (was bool, err error) {
	s.idle()
	s.changing.Lock()
	defer s.changing.Unlock()
	now := s.get()
	if now == nil {
		return false, nil
	}
	err = now.close(ctx)
	now.namespaces.Close()
	s.put(nil)
	return true, err
}

// Connect implements DaemonServiceServer.
func (s *Server) Connect(
	req *daemonv1.ConnectRequest, stream grpc.ServerStreamingServer[daemonv1.ConnectResponse],
) error {
	s.changing.Lock()
	defer s.changing.Unlock()
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
		connected, err := s.reuseLocked(ctx, now, req, progress)
		if err != nil {
			return err
		}
		return stream.Send(&daemonv1.ConnectResponse{Status: connected.status(stream.Context())})
	}
	made, err := connect(ctx, req, now, s.paths, s.log, progress)
	if err != nil {
		return status.Error(codes.Aborted, err.Error())
	}
	made.takeOver(now)
	s.put(made)
	made.intercepts.Restore(ctx)
	return stream.Send(&daemonv1.ConnectResponse{Status: made.status(stream.Context())})
}

// reuseLocked returns the session that a request may use: the live one, or one with the request's
// credentials in place of expired ones. Its errors are those of the RPC. The caller holds
// s.changing.
func (s *Server) reuseLocked(
	ctx context.Context, now *session, req *daemonv1.ConnectRequest, progress func(string),
) (*session, error) {
	config, err := kubeconfig.Unpack(req.Kubeconfig)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	if difference := now.difference(req, config.Host); difference != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "already connected %s: run `detour quit` first", difference)
	}
	if !now.renews(ctx, req) {
		return now, nil
	}
	renewed, err := s.renewLocked(ctx, now, req.Kubeconfig, progress)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return renewed, nil
}

// difference describes how a session differs from a request for a session, if it does.
func (i *identity) difference(req *daemonv1.ConnectRequest, server string) string {
	if where := i.mismatch(req, server); where != "" {
		return "to " + where
	}
	if req.HostLoopback && !i.request.HostLoopback {
		return "without --host-loopback"
	}
	if req.Transport != "" && req.Transport != cmp.Or(i.request.Transport, tunnel.Auto) {
		return "without --transport " + req.Transport
	}
	if flags := overrides.Mismatch(req.NetworkOverrides, i.request.NetworkOverrides); len(flags) > 0 {
		return "with another " + strings.Join(flags, ", ")
	}
	return ""
}

// confine limits a kubeconfig to the rights of the caller. The daemon may be root's, and it runs
// the plugins and reads the files that the kubeconfig names, also when it makes the session again.
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
func (s *Server) Intercept(
	req *daemonv1.InterceptRequest, stream grpc.ServerStreamingServer[daemonv1.InterceptResponse],
) error {
	now := s.get()
	if now == nil {
		return status.Error(codes.FailedPrecondition, "not connected: run `detour connect` first")
	}
	if now.isEnded() {
		return status.Error(codes.FailedPrecondition, now.status(stream.Context()).Problem)
	}
	i, err := now.intercepts.Add(stream.Context(), req, func(m *daemonv1.InterceptResponse) { _ = stream.Send(m) })
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
	ended, err := now.intercepts.Leave(ctx, req)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return &daemonv1.LeaveResponse{Intercepts: ended}, nil
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
	was, err := s.disconnect(ctx)
	s.quit()
	r := &daemonv1.QuitResponse{WasConnected: was}
	if err != nil {
		r.NotDeleted = explain.Error(err, "delete the session").Error()
	}
	return r, nil
}
