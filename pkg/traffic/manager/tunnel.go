package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
)

// upgradeTimeout is how long a laptop may take to send its request, and how long a connection may
// stay open without one.
const upgradeTimeout = 10 * time.Second

// switchingProtocols is the answer to a laptop's request. What follows belongs to the tunnel.
const switchingProtocols = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " +
	vif.UpgradeProtocol + "\r\n\r\n"

// serveTunnel answers laptops' upgrade requests and hands their connections to the hub, until ctx
// ends.
func serveTunnel(ctx context.Context, hub *vif.Hub, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tunnel", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != vif.UpgradeProtocol {
			http.Error(w, "this is detour's tunnel: the request must ask for an upgrade to "+vif.UpgradeProtocol,
				http.StatusUpgradeRequired)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			log.Warn("taking over a laptop's connection failed", "err", err)
			return
		}
		_ = conn.SetDeadline(time.Time{})
		if _, err := conn.Write([]byte(switchingProtocols)); err != nil {
			_ = conn.Close()
			return
		}
		if err := hub.ServeStream(ctx, netx.Unbuffered(netx.Wrap(conn), buffered.Reader)); err != nil {
			log.Debug("a tunnel ended", "err", err)
		}
	})
	server := &http.Server{
		Addr: port(wellknown.TunnelPort), Handler: mux, ReadHeaderTimeout: upgradeTimeout, IdleTimeout: upgradeTimeout,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the tunnel: %w", err)
	}
	return nil
}

// mayReach reports whether laptops may reach an address. They may reach neither the manager's own
// loopback nor link-local services such as a cloud's metadata.
func mayReach(a netip.Addr) bool {
	a = a.Unmap() // Linux takes ::ffff:0.0.0.0 for its own loopback
	return a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}
