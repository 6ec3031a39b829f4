// Package daemon is the laptop's side of a session: it holds the VIF, the DNS and the intercepts, and serves the command line
// on a unix socket.
package daemon

import (
	"os"
	"path/filepath"

	"github.com/detour-dev/detour/pkg/dnsproxy"
)

// Paths are where the daemon keeps its socket and its memory of what it changed.
type Paths struct{ Run, State string }

// DefaultPaths honours $DETOUR_RUN_DIR and $DETOUR_STATE_DIR.
func DefaultPaths() Paths {
	p := Paths{Run: os.Getenv("DETOUR_RUN_DIR"), State: os.Getenv("DETOUR_STATE_DIR")}
	if p.Run == "" {
		p.Run = "/run/detour"
	}
	if p.State == "" {
		p.State = "/var/lib/detour"
	}
	return p
}

// Socket is the daemon's.
func (p Paths) Socket() string { return filepath.Join(p.Run, "daemon.sock") }

// Log is the daemon's, of its last run.
func (p Paths) Log() string { return filepath.Join(p.State, "daemon.log") }

// Resolver is the laptop's resolver configuration, and what is kept to put it back.
func (p Paths) Resolver() dnsproxy.ResolvConf {
	return dnsproxy.ResolvConf{Path: "/etc/resolv.conf", State: p.State}
}
