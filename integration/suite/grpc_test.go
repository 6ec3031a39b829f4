package suite

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	stockv1 "github.com/detour-dev/detour/rpc/examples/stock/v1"
)

type laptopStock struct {
	stockv1.UnimplementedStockServiceServer
}

func (laptopStock) Count(context.Context, *stockv1.CountRequest) (*stockv1.CountResponse, error) {
	return &stockv1.CountResponse{Count: 1, ServedBy: "laptop"}, nil
}

// A gRPC client keeps one connection for ever. It moves to the laptop and back with its next call, and no call fails.
func TestGRPCClientsMove(t *testing.T) {
	connected(t)
	l, err := net.Listen("tcp", "127.0.0.1:19090")
	require.NoError(t, err)
	server := grpc.NewServer()
	stockv1.RegisterStockServiceServer(server, laptopStock{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	// The first time, for the agent to be there: a rollout ends connections anyway.
	detour(t, "intercept", "stock", "--port", "19090")
	detour(t, "leave", "stock")

	conn, err := grpc.NewClient("passthrough:///stock.shop:9090", grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	client := stockv1.NewStockServiceClient(conn)
	servedBy := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		answer, err := client.Count(ctx, &stockv1.CountRequest{Item: "kettle"})
		require.NoError(t, err)
		return answer.ServedBy
	}
	ctx, stop := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	failures := make(chan error, 1000)
	calls.Go(func() {
		for ctx.Err() == nil {
			if _, err := client.Count(context.WithoutCancel(ctx), &stockv1.CountRequest{Item: "kettle"}); err != nil {
				failures <- err
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	for range 3 {
		require.NotEqual(t, "laptop", servedBy())
		detour(t, "intercept", "stock", "--port", "19090")
		require.Equal(t, "laptop", servedBy())
		require.Contains(t, inClusterPage(), `"stock_from":"laptop"`, "the catalog in the cluster keeps a connection too")
		detour(t, "leave", "stock")
		require.NotEqual(t, "laptop", servedBy())
		require.NotContains(t, inClusterPage(), `"stock_from":"laptop"`)
	}
	stop()
	calls.Wait()
	require.Empty(t, failures)
}
