package manager

import (
	"context"
	"crypto/hmac"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/tail"
	"github.com/detour-dev/detour/pkg/traffic/manager/agents"
	"github.com/detour-dev/detour/pkg/traffic/manager/intercept"
	"github.com/detour-dev/detour/pkg/traffic/manager/session"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

const (
	// refreshTail is how often a tail follows pods that are created and deleted.
	refreshTail = time.Second
	// tailKeepalive is how long a laptop may be silent before it is probed, and how long its answer
	// may take.
	tailKeepalive = 10 * time.Second
)

// tailServer sends laptops the requests that agents route. A laptop may see the requests of a
// namespace if it has a Session there. The laptop's address in the tunnel tells which Session a
// connection belongs to, and a proof shows that it is the daemon that calls.
type tailServer struct {
	tailv1.UnimplementedTailServiceServer
	intercepts *intercept.Reconciler
	agents     *agents.Registry
	key        wgkey.Key // the manager's
	log        *slog.Logger
}

// serve serves on the hub's own addresses, which only laptops reach, until ctx ends.
func (t *tailServer) serve(ctx context.Context, hub *vif.Hub, addresses []netip.Addr) error {
	server := grpc.NewServer(
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: tailKeepalive, Timeout: tailKeepalive}))
	tailv1.RegisterTailServiceServer(server, t)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer server.Stop()
	for _, a := range addresses {
		listener, err := hub.Listen(netip.AddrPortFrom(a, tail.Port))
		if err != nil {
			return err
		}
		serving.Go(func() {
			if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				t.log.Warn("serving tails failed", "address", a, "err", err)
			}
		})
	}
	<-ctx.Done()
	return nil
}

// Tail implements TailServiceServer.
func (t *tailServer) Tail(request *tailv1.TailRequest, stream grpc.ServerStreamingServer[tailv1.TailResponse]) error {
	ctx := stream.Context()
	caller, err := t.authenticate(ctx)
	if err != nil {
		return err
	}
	find := func() (*intercept.TailTarget, error) {
		return t.intercepts.FindTailTarget(ctx, caller.Namespace, request.Service, request.Port)
	}
	target, err := find()
	if err != nil {
		return tailError(err)
	}
	w := agents.NewWatcher()
	t.agents.Watch(w, target.Ports, target.Pods)
	defer t.agents.Unwatch(w)
	if err := stream.Send(&tailv1.TailResponse{Note: target.Note}); err != nil {
		return err
	}
	refresh := time.NewTicker(refreshTail)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-refresh.C:
			if _, err := t.authenticate(ctx); err != nil {
				return err
			}
			if target, err := find(); err == nil {
				t.agents.Watch(w, target.Ports, target.Pods)
			}
		case <-w.Ready():
			requests, missed := t.agents.Take(w)
			if len(requests) == 0 && missed == 0 {
				continue
			}
			if err := stream.Send(&tailv1.TailResponse{Requests: requests, Missed: missed}); err != nil {
				return err
			}
		}
	}
}

// authenticate returns the session whose daemon calls.
func (t *tailServer) authenticate(ctx context.Context) (*detour.Session, error) {
	denied := status.Error(codes.PermissionDenied, "the call comes from no session's laptop: connect again")
	from, ok := peer.FromContext(ctx)
	if !ok {
		return nil, denied
	}
	address, err := netip.ParseAddrPort(from.Addr.String())
	if err != nil {
		return nil, denied
	}
	var all detour.SessionList
	if err := t.intercepts.List(ctx, &all); err != nil {
		return nil, status.Error(codes.Unavailable, "the traffic-manager cannot read the sessions: try again")
	}
	for i := range all.Items {
		s := &all.Items[i]
		own := session.ParseAddresses(s.Status.Addresses)
		if !s.DeletionTimestamp.IsZero() || !slices.Contains(own, address.Addr().Unmap()) {
			continue
		}
		key, err := wgkey.Parse(s.Spec.PublicKey)
		if err != nil {
			return nil, denied
		}
		want, err := t.key.Proof(key, tail.ProofPurpose)
		md, _ := metadata.FromIncomingContext(ctx)
		if got := md.Get(tail.ProofMetadataKey); err != nil || len(got) != 1 || !hmac.Equal([]byte(got[0]), want) {
			return nil, denied
		}
		return s, nil
	}
	return nil, denied
}

// tailError distinguishes what the user has to change from what may pass.
func tailError(err error) error {
	var refusal intercept.Refusal
	if errors.As(err, &refusal) {
		return status.Error(codes.FailedPrecondition, refusal.Message)
	}
	return status.Error(codes.Unavailable, err.Error())
}
