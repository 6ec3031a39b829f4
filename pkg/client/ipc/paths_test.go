package ipc

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The path is rejected before a daemon is started that could not listen.
func TestSocketPathThatIsTooLongIsRejected(t *testing.T) {
	dir, err := os.MkdirTemp("", "detour-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	rest := maxSocketPath - len(Paths{Run: dir}.Socket()) - 1
	fits := Paths{Run: filepath.Join(dir, strings.Repeat("x", rest)), State: dir}
	require.NoError(t, fits.MakeDirectories())
	l, err := net.Listen("unix", fits.Socket())
	require.NoError(t, err)
	_ = l.Close()

	long := Paths{Run: fits.Run + "x", State: dir}
	require.ErrorContains(t, long.MakeDirectories(), "exceeds the limit of ")
	require.ErrorContains(t, long.Check(), "set DETOUR_RUN_DIR or XDG_RUNTIME_DIR to a shorter directory")
	require.NoError(t, os.MkdirAll(long.Run, 0o700))
	_, err = net.Listen("unix", long.Socket())
	require.Error(t, err)
}

func TestMessageNamesTheVariableOfADirectoryThatCannotBeMade(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	assert.ErrorContains(t, Paths{Run: dir, State: filepath.Join(file, "state")}.MakeDirectories(),
		"set DETOUR_STATE_DIR to one that you may write to")
	assert.ErrorContains(t, Paths{Run: filepath.Join(file, "run"), State: dir}.MakeDirectories(),
		"set DETOUR_RUN_DIR to one that you may write to")
}

// The message must not blame another user, nor ask for the removal of a directory that does not
// exist.
func TestRunDirectoryBelowAFileIsRejected(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	below := Paths{Run: filepath.Join(file, "run"), State: t.TempDir(), Rootless: true}
	require.EqualError(t, below.Check(), "look for the directory of the daemon's socket: lstat "+below.Run+
		": not a directory: set XDG_RUNTIME_DIR or DETOUR_RUN_DIR to one of your own")
}

func TestDefaultPaths(t *testing.T) {
	for name, c := range map[string]struct {
		rootless    bool
		environment map[string]string
		run, state  string
	}{
		"of root": {run: "/run/detour", state: "/var/lib/detour"},
		"set by variables": {
			environment: map[string]string{"DETOUR_RUN_DIR": "/a", "DETOUR_STATE_DIR": "/b"},
			run:         "/a", state: "/b",
		},
		"of an ordinary user": {
			rootless:    true,
			environment: map[string]string{"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/eve"},
			run:         "/run/user/7/detour", state: "/home/eve/.local/state/detour",
		},
		"of a user without a home": {
			rootless:    true,
			environment: map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"},
			run:         "/run/user/7/detour", state: "/run/user/7/detour/state",
		},
		"of a user with a state directory": {
			rootless: true,
			environment: map[string]string{
				"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/eve", "XDG_STATE_HOME": "/state",
			},
			run: "/run/user/7/detour", state: "/state/detour",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{
				"DETOUR_RUN_DIR", "DETOUR_STATE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME",
			} {
				t.Setenv(v, c.environment[v])
			}
			assert.Equal(t, Paths{Run: c.run, State: c.state, Rootless: c.rootless}, DefaultPaths(c.rootless))
		})
	}
}
