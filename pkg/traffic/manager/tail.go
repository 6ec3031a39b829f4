package manager

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
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
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/tail"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

// followPods is how often who tails is made to follow pods that come and go.
const followPods = time.Second

// tails tells laptops of the requests that are routed. Who may see those of a namespace is who has a Session in it: the laptop's
// address in the tunnel says whose the connection is, and a proof says that it is the daemon's.
type tails struct {
	tailv1.UnimplementedTailServiceServer
	intercepts *interceptReconciler
	key        wgkey.Key
}

// serveTail serves on the hub's own addresses, where only laptops come.
func serveTail(ctx context.Context, hub *vif.Hub, t *tails, addresses []netip.Addr, o Options) error {
	server := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}))
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
				o.Log.Warn("serving those who tail failed", "err", err)
			}
		})
	}
	<-ctx.Done()
	return nil
}

// Tail implements TailServiceServer.
func (t *tails) Tail(request *tailv1.TailRequest, stream grpc.ServerStreamingServer[tailv1.TailResponse]) error {
	ctx := stream.Context()
	caller, err := t.caller(ctx)
	if err != nil {
		return err
	}
	w := &watcher{more: make(chan struct{}, 1)}
	found, err := t.find(ctx, caller.Namespace, request)
	if err != nil {
		return told(err)
	}
	agents := t.intercepts.agents
	agents.watch(w, found.ports, found.pods)
	defer agents.unwatch(w)
	if err := stream.Send(&tailv1.TailResponse{Note: found.note}); err != nil {
		return err
	}
	follow := time.NewTicker(followPods)
	defer follow.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-follow.C:
			if _, err := t.caller(ctx); err != nil {
				return err
			}
			if found, err := t.find(ctx, caller.Namespace, request); err == nil {
				agents.watch(w, found.ports, found.pods)
			}
		case <-w.more:
			requests, missed := agents.take(w)
			if len(requests) == 0 && missed == 0 {
				continue
			}
			if err := stream.Send(&tailv1.TailResponse{Requests: requests, Missed: missed}); err != nil {
				return err
			}
		}
	}
}

// caller is the session whose laptop calls.
func (t *tails) caller(ctx context.Context) (*detour.Session, error) {
	denied := status.Error(codes.PermissionDenied, "this is no session's laptop: connect again")
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
		return nil, status.Error(codes.Unavailable, "the sessions cannot be read")
	}
	for i := range all.Items {
		s := &all.Items[i]
		if !s.DeletionTimestamp.IsZero() || !slices.Contains(parseAddresses(s.Status.Addresses), address.Addr().Unmap()) {
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

// tailable is what of a service can be tailed now.
type tailable struct {
	ports map[uint32]bool
	pods  map[string]string
	note  string
}

// find finds the ports of a service's pods that have an agent before them.
func (t *tails) find(ctx context.Context, namespace string, request *tailv1.TailRequest) (*tailable, error) {
	var wanted []*intstr.IntOrString
	if request.Port != "" {
		port := intstr.Parse(request.Port)
		wanted = append(wanted, &port)
	} else {
		var svc corev1.Service
		// One that is not there is resolve's to explain.
		if err := t.intercepts.Get(ctx, client.ObjectKey{Namespace: namespace, Name: request.Service}, &svc); client.IgnoreNotFound(err) != nil {
			return nil, err
		}
		for _, p := range svc.Spec.Ports {
			port := intstr.FromInt32(p.Port)
			wanted = append(wanted, &port)
		}
		if len(wanted) == 0 {
			wanted = append(wanted, nil)
		}
	}
	found := &tailable{ports: map[uint32]bool{}, pods: map[string]string{}}
	var why error
	name := ""
	for _, port := range wanted {
		w, err := t.intercepts.resolve(ctx, &detour.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: namespace}, Spec: detour.InterceptSpec{Service: request.Service, Port: port}})
		if err != nil {
			why = err
			continue
		}
		name = w.Name()
		pods, err := t.intercepts.pods(ctx, w)
		if err != nil {
			return nil, err
		}
		for i := range pods {
			if inject.HasAgent(&pods[i], w.port) {
				found.ports[uint32(w.port.Port)] = true
				found.pods[string(pods[i].UID)] = pods[i].Name
			}
		}
	}
	switch {
	case len(found.pods) > 0:
		found.note = fmt.Sprintf("the requests of service %s as %d pods of %s route them; Ctrl-C ends", request.Service, len(found.pods), name)
		return found, nil
	case name != "":
		return nil, refuse("", "no pod of service %s has the traffic-agent, which is what sees requests: the first `detour intercept %s` puts it there (--mode wiretap takes nothing from anybody)", request.Service, request.Service)
	default:
		return nil, why
	}
}

// told gives a person the reason that is meant for one.
func told(err error) error {
	if no, ok := err.(refusal); ok { //nolint:errorlint // made here, never wrapped
		return status.Error(codes.FailedPrecondition, no.message)
	}
	return status.Error(codes.Unavailable, err.Error())
}
