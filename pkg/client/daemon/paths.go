// Package daemon is the laptop's side of a session: it holds the VIF, the DNS and the intercepts, and serves the command line
// on a unix socket.
package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/detour-dev/detour/pkg/dnsproxy"
)

// Paths are where the daemon keeps its socket and its memory of what it changed.
type Paths struct {
	Run, State string
	// Rootless is the mode of an ordinary user's daemon: nothing of the laptop is changed, the network is in namespaces.
	Rootless bool
}

// DefaultPaths honours $DETOUR_RUN_DIR and $DETOUR_STATE_DIR. An ordinary user's are where the XDG Base Directory Specification
// wants them.
func DefaultPaths(rootless bool) Paths {
	p := Paths{Run: os.Getenv("DETOUR_RUN_DIR"), State: os.Getenv("DETOUR_STATE_DIR"), Rootless: rootless}
	run, state := "/run/detour", "/var/lib/detour"
	if rootless {
		run = "/tmp/detour-" + strconv.Itoa(os.Geteuid())
		if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
			run = filepath.Join(dir, "detour")
		}
		state = filepath.Join(run, "state") // somebody without a home
		if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
			state = filepath.Join(dir, "detour")
		} else if home := os.Getenv("HOME"); home != "" {
			state = filepath.Join(home, ".local", "state", "detour")
		}
	}
	if p.Run == "" {
		p.Run = run
	}
	if p.State == "" {
		p.State = state
	}
	return p
}

// Make makes the directories. An ordinary user's run directory may be in /tmp, where somebody else could have made it before: see Check.
func (p Paths) Make() error {
	mode := os.FileMode(0o755)
	if p.Rootless {
		mode = 0o700
	}
	for _, d := range []struct{ path, variable string }{{p.Run, "DETOUR_RUN_DIR"}, {p.State, "DETOUR_STATE_DIR"}} {
		if err := os.MkdirAll(d.path, mode); err != nil {
			return fmt.Errorf("make a directory of the daemon: %w: set %s to one that you may write to", err, d.variable)
		}
	}
	return p.Check()
}

// longestSocket is the longest path of a socket that the kernel takes, in bytes.
const longestSocket = len(syscall.RawSockaddrUnix{}.Path) - 1

// Check refuses a run directory in which no socket can be, or in which somebody else could listen, and would be told the user's credentials.
func (p Paths) Check() error {
	if len(p.Socket()) > longestSocket {
		return fmt.Errorf("the path of the daemon's socket, %s, is longer than the %d bytes that a socket's may have: set DETOUR_RUN_DIR or XDG_RUNTIME_DIR to a shorter directory", p.Socket(), longestSocket)
	}
	_, err := os.Lstat(p.Run)
	switch {
	case !p.Rootless, os.IsNotExist(err):
		return nil
	case err != nil:
		return fmt.Errorf("look for the directory of the daemon's socket: %w: set XDG_RUNTIME_DIR or DETOUR_RUN_DIR to one of your own", err)
	case ownDirectory(p.Run):
		return nil
	}
	return fmt.Errorf("%s belongs to somebody else, or others may write to it: remove it, or set XDG_RUNTIME_DIR", p.Run)
}

// Socket is the daemon's.
func (p Paths) Socket() string { return filepath.Join(p.Run, "daemon.sock") }

// Log is the daemon's, of its last run.
func (p Paths) Log() string { return filepath.Join(p.State, "daemon.log") }

// insideResolver is what /etc/resolv.conf is in the namespaces of the rootless mode.
func (p Paths) insideResolver() string { return filepath.Join(p.Run, "resolv.conf") }

// Resolver is the laptop's resolver configuration, and what is kept to put it back.
func (p Paths) Resolver() dnsproxy.ResolvConf {
	return dnsproxy.ResolvConf{Path: "/etc/resolv.conf", State: p.State}
}
