package daemon

import (
	"context"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/detour-dev/detour/pkg/tail"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

const (
	tailPingInterval = 12 * time.Second
	tailPingTimeout  = 3 * time.Second
)

// tail forwards the requests that the traffic-manager reports. It dials the traffic-manager inside
// the tunnel, which encrypts and authenticates the laptop.
func (s *session) tail(req *tailv1.TailRequest, stream grpc.ServerStreamingServer[tailv1.TailResponse]) error {
	hub, proof := s.network.Hub()
	if !hub.IsValid() {
		return status.Error(codes.FailedPrecondition, "the traffic-manager's address in the tunnel is not known")
	}
	dial := s.network.Place().Dial
	conn, err := grpc.NewClient("passthrough:///"+netip.AddrPortFrom(hub, tail.Port).String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dial(ctx, "tcp", address)
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: tailPingInterval, Timeout: tailPingTimeout}))
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(stream.Context(), tail.ProofMetadataKey, string(proof))
	requests, err := tailv1.NewTailServiceClient(conn).Tail(ctx, req)
	if err != nil {
		return err
	}
	for {
		m, err := requests.Recv()
		if err != nil {
			if status.Code(err) == codes.Unavailable {
				const unreachable = "the traffic-manager is unreachable through the tunnel: see `detour status`"
				return status.Error(codes.Unavailable, unreachable)
			}
			return err
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}
