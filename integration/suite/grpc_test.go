package suite

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/detour-dev/detour/integration/suite/kit"
	stockv1 "github.com/detour-dev/detour/rpc/examples/stock/v1"
)

type laptopStock struct {
	stockv1.UnimplementedStockServiceServer
}

func (laptopStock) Count(context.Context, *stockv1.CountRequest) (*stockv1.CountResponse, error) {
	return &stockv1.CountResponse{Count: 1, ServedBy: "laptop"}, nil
}

// A gRPC client keeps one connection for ever. It moves to the laptop and back as soon as it has
// read that it should, and no call fails.
func TestGRPCClientsMove(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Stock), kit.Uses(kit.Machine, kit.Catalog, kit.Frontend))
	kit.Connect(t)
	l, port := kit.Listen(t, "0")
	server := grpc.NewServer()
	stockv1.RegisterStockServiceServer(server, laptopStock{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	// The first intercept rolls the agent out, which ends connections anyway.
	kit.Detour(t, "intercept", "stock", "--port", port)
	kit.Detour(t, "leave", "stock")

	conn, err := grpc.NewClient("passthrough:///stock.shop:9090",
		grpc.WithTransportCredentials(insecure.NewCredentials()))
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
	moves := func(laptop bool) {
		t.Helper()
		// A call that is on its way when the client is told to move is answered by the old edition.
		kit.Eventually(t, func() bool { return laptop == (servedBy() == "laptop") })
		kit.Eventually(t, func() bool { return laptop == strings.Contains(kit.ClusterPage(), `"stock_from":"laptop"`) },
			"the catalog in the cluster keeps a connection too")
	}
	for range 3 {
		moves(false)
		kit.Detour(t, "intercept", "stock", "--port", port)
		moves(true)
		kit.Detour(t, "leave", "stock")
	}
	moves(false)
	stop()
	calls.Wait()
	require.Empty(t, failures)
}
