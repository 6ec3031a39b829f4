package manager

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// laptopDialTimeout is how long the laptop's daemon may take to accept a connection. The agent
	// waits with the client's request meanwhile.
	laptopDialTimeout = 1500 * time.Millisecond
	// headerTimeout is how long an agent may take to send the relay header.
	headerTimeout = 5 * time.Second
)

// agentKeepalive notices an agent whose node is lost, which closes nothing.
var agentKeepalive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

// relayServer connects agents to laptops.
type relayServer struct {
	hub *vif.Hub
	// target returns the laptop's address for an intercept if the token belongs to it.
	target func(interceptUID string, token []byte) (address string, ok bool)
	log    *slog.Logger
}

// serve accepts relay connections until ctx ends, and returns when all of them are closed.
func (s *relayServer) serve(ctx context.Context, certs *certificates) error {
	// What several mux streams write at the same time shares one TLS record: see pkg/relay.
	config := &tls.Config{DynamicRecordSizingDisabled: true}
	certs.configure(config)
	config.MinVersion = tls.VersionTLS13
	listening := net.ListenConfig{KeepAliveConfig: agentKeepalive}
	listener, err := listening.Listen(ctx, "tcp", port(wellknown.RelayPort))
	if err != nil {
		return fmt.Errorf("listen for relay connections: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	netx.AcceptLoop(listener, s.log, func(plain net.Conn) {
		conn := relay.Server(plain, config)
		open.Go(func() {
			defer conn.Close()
			end := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer end()
			if err := s.relay(ctx, conn); err != nil {
				s.log.Debug("a relay connection failed", "err", err)
			}
		})
	})
	return nil
}

// relay connects one agent to the laptop that its header asks for.
func (s *relayServer) relay(ctx context.Context, conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(headerTimeout))
	header, err := relay.ReadHeader(conn)
	if err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Time{})
	address, ok := s.target(header.InterceptUid, header.Token)
	if !ok {
		return relay.WriteStatus(conn, agentv1.RelayStatus_RELAY_STATUS_DENIED)
	}
	to, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("the laptop's address: %w", err)
	}
	dialing, cancel := context.WithTimeout(ctx, laptopDialTimeout)
	laptop, err := s.hub.Dial(dialing, netip.AddrPortFrom(to, relay.LaptopPort))
	cancel()
	if err != nil {
		return errors.Join(err, relay.WriteStatus(conn, agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE))
	}
	header.Token = nil
	if err := relay.WriteHeader(laptop, header); err != nil {
		_ = laptop.Close()
		return errors.Join(err, relay.WriteStatus(conn, agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE))
	}
	netx.Splice(conn, laptop)
	return nil
}
