package manager

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

const laptopDialTimeout = 1500 * time.Millisecond

// serveRelay carries agents' connections to the laptops.
func serveRelay(ctx context.Context, hub *vif.Hub, a *agents, certs *certificates, o Options) error {
	// What several streams say at the same time is to be one record.
	config := &tls.Config{DynamicRecordSizingDisabled: true}
	certs.configure(config)
	config.MinVersion = tls.VersionTLS13
	// An agent whose node is lost says no goodbye.
	listening := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}
	listener, err := listening.Listen(ctx, "tcp", net.JoinHostPort("", fmt.Sprint(wellknown.RelayPort)))
	if err != nil {
		return fmt.Errorf("listen for relayed connections: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	netx.AcceptLoop(listener, o.Log, func(plain net.Conn) {
		conn := relay.Server(plain, config)
		open.Go(func() {
			defer conn.Close()
			end := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer end()
			if err := relayOne(ctx, conn, hub, a); err != nil {
				o.Log.Debug("a relayed connection failed", "err", err)
			}
		})
	})
	return nil
}

func relayOne(ctx context.Context, conn net.Conn, hub *vif.Hub, a *agents) error {
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	header, err := relay.ReadHeader(conn)
	if err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Time{})
	address, ok := a.relayTarget(header.InterceptUid, header.Token)
	if !ok {
		return relay.WriteStatus(conn, agentv1.RelayStatus_RELAY_STATUS_DENIED)
	}
	to, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("the laptop's address: %w", err)
	}
	dialling, cancel := context.WithTimeout(ctx, laptopDialTimeout)
	laptop, err := hub.Dial(dialling, netip.AddrPortFrom(to, relay.LaptopPort))
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
