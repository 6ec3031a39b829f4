// Command stock is the gRPC service of the shop that counts an item.
package main

import (
	"context"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"

	stockv1 "github.com/detour-dev/detour/rpc/examples/stock/v1"
)

type server struct {
	stockv1.UnimplementedStockServiceServer
	host string
}

// Count returns an invented number, always the same for an item.
func (s server) Count(_ context.Context, r *stockv1.CountRequest) (*stockv1.CountResponse, error) {
	return &stockv1.CountResponse{Count: uint32(len(r.Item)) * 7, ServedBy: s.host}, nil
}

func main() {
	host, _ := os.Hostname()
	l, err := net.Listen("tcp", ":9090")
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	stockv1.RegisterStockServiceServer(s, server{host: host})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, s.GracefulStop)
	if err := s.Serve(l); err != nil {
		log.Fatal(err)
	}
}
