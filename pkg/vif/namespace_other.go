//go:build !linux

package vif

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"

	"golang.zx2c4.com/wireguard/tun"
)

var errNoNamespaces = errors.New("a network without root is there on Linux only")

// Namespace is there on Linux only.
type Namespace struct{}

// NewNamespace fails.
func NewNamespace(context.Context, []string, *slog.Logger) (*Namespace, error) {
	return nil, errNoNamespaces
}

// Hold fails.
func Hold(*os.File) error { return errNoNamespaces }

func (n *Namespace) createTUN(Config) (tun.Device, hostInterface, error) {
	return nil, nil, errNoNamespaces
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
