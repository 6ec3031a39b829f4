//go:build !linux

package rootless

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/tundev"
)

var errNoNamespaces = errors.New("rootless mode works on Linux only")

// Namespace exists on Linux only.
type Namespace struct{}

// New fails.
func New(context.Context, []string, *slog.Logger) (*Namespace, error) {
	return nil, errNoNamespaces
}

// RunHelper fails.
func RunHelper(*os.File) error { return errNoNamespaces }

// OpenTUN returns a function that fails.
func (n *Namespace) OpenTUN(bool) tundev.OpenFunc {
	return func(tundev.Options) (tun.Device, tundev.HostInterface, error) { return nil, nil, errNoNamespaces }
}

// PID is 0.
func (n *Namespace) PID() int { return 0 }

// ID is empty.
func (n *Namespace) ID() string { return "" }

// Gone is true.
func (n *Namespace) Gone() bool { return true }

// DialContext fails.
func (n *Namespace) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errNoNamespaces
}

// Listen fails.
func (n *Namespace) Listen(string, string) (net.Listener, error) { return nil, errNoNamespaces }

// ListenPacket fails.
func (n *Namespace) ListenPacket(string, string) (net.PacketConn, error) {
	return nil, errNoNamespaces
}

// Bind fails.
func (n *Namespace) Bind(string, string) error { return errNoNamespaces }

// Close does nothing.
func (n *Namespace) Close() error { return nil }
