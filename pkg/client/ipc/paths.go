package ipc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/detour-dev/detour/pkg/dnsproxy"
)

// Paths locates the daemon's socket and its record of what it changed on the laptop.
type Paths struct {
	// Run is the directory of the socket, State that of the log and of the backups.
	Run, State string
	// Rootless is the mode of an ordinary user's daemon: the cluster's network is in namespaces,
	// and nothing of the laptop is changed.
	Rootless bool
}

// DefaultPaths returns the paths of one mode. $DETOUR_RUN_DIR and $DETOUR_STATE_DIR override them.
// In rootless mode the defaults follow the XDG Base Directory Specification.
func DefaultPaths(rootless bool) Paths {
	p := Paths{Run: os.Getenv("DETOUR_RUN_DIR"), State: os.Getenv("DETOUR_STATE_DIR"), Rootless: rootless}
	run, state := "/run/detour", "/var/lib/detour"
	if rootless {
		run = "/tmp/detour-" + strconv.Itoa(os.Geteuid())
		if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
			run = filepath.Join(dir, "detour")
		}
		state = filepath.Join(run, "state") // a user may have no home
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

// MakeDirectories creates the directories and then checks them: an ordinary user's run directory
// may be in /tmp, where somebody else could have created it before. See Check.
func (p Paths) MakeDirectories() error {
	mode := os.FileMode(0o755)
	if p.Rootless {
		mode = 0o700
	}
	for _, d := range []struct{ path, variable string }{
		{path: p.Run, variable: "DETOUR_RUN_DIR"},
		{path: p.State, variable: "DETOUR_STATE_DIR"},
	} {
		if err := os.MkdirAll(d.path, mode); err != nil {
			return fmt.Errorf("make a directory of the daemon: %w: set %s to one that you may write to",
				err, d.variable)
		}
	}
	return p.Check()
}

// maxSocketPath is the length of the longest socket path that the kernel accepts, in bytes.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// Check rejects a run directory whose path is too long for a socket, and in rootless mode one that
// others may write to: somebody else could listen there and would receive the user's credentials.
func (p Paths) Check() error {
	if len(p.Socket()) > maxSocketPath {
		return fmt.Errorf("the path of the daemon's socket, %s, exceeds the limit of %d bytes: "+
			"set DETOUR_RUN_DIR or XDG_RUNTIME_DIR to a shorter directory", p.Socket(), maxSocketPath)
	}
	_, err := os.Lstat(p.Run)
	switch {
	case !p.Rootless, os.IsNotExist(err):
		return nil
	case err != nil:
		return fmt.Errorf("look for the directory of the daemon's socket: %w: "+
			"set XDG_RUNTIME_DIR or DETOUR_RUN_DIR to one of your own", err)
	case ownDirectory(p.Run):
		return nil
	}
	return fmt.Errorf("%s belongs to another user, or others may write to it: "+
		"remove it, or set XDG_RUNTIME_DIR", p.Run)
}

// Socket returns the path of the daemon's socket.
func (p Paths) Socket() string { return filepath.Join(p.Run, "daemon.sock") }

// Log returns the path of the daemon's log. It covers the last run.
func (p Paths) Log() string { return filepath.Join(p.State, "daemon.log") }

// RootlessResolvConf returns the path of the file that is /etc/resolv.conf in the namespaces of
// rootless mode.
func (p Paths) RootlessResolvConf() string { return filepath.Join(p.Run, "resolv.conf") }

// Resolver returns the laptop's resolver configuration, with its backup in the state directory.
func (p Paths) Resolver() dnsproxy.ResolvConf {
	return dnsproxy.ResolvConf{Path: "/etc/resolv.conf", State: p.State}
}
