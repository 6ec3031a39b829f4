package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A path that is too long for a socket is refused before a daemon is started that could not listen.
func TestLongestSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "detour-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	rest := longestSocket - len(Paths{Run: dir}.Socket()) - 1
	fits := Paths{Run: filepath.Join(dir, strings.Repeat("x", rest)), State: dir}
	require.NoError(t, fits.Make())
	l, err := net.Listen("unix", fits.Socket())
	require.NoError(t, err)
	_ = l.Close()

	long := Paths{Run: fits.Run + "x", State: dir}
	require.ErrorContains(t, long.Make(), "is longer than the ")
	require.ErrorContains(t, long.Check(), "set DETOUR_RUN_DIR or XDG_RUNTIME_DIR to a shorter directory")
	require.NoError(t, os.MkdirAll(long.Run, 0o700))
	_, err = net.Listen("unix", long.Socket())
	require.Error(t, err)
}

// Where no directory can be made, the message says which variable names another.
func TestDirectoriesThatCannotBeMade(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	assert.ErrorContains(t, Paths{Run: dir, State: filepath.Join(file, "state")}.Make(), "set DETOUR_STATE_DIR to one that you may write to")
	assert.ErrorContains(t, Paths{Run: filepath.Join(file, "run"), State: dir}.Make(), "set DETOUR_RUN_DIR to one that you may write to")
}

// A directory that cannot even be looked at is not somebody else's, and nobody could remove it.
func TestDirectoryOutOfReach(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	out := Paths{Run: filepath.Join(file, "run"), State: t.TempDir(), Rootless: true}
	require.EqualError(t, out.Check(), "look for the directory of the daemon's socket: lstat "+out.Run+": not a directory: set XDG_RUNTIME_DIR or DETOUR_RUN_DIR to one of your own")
}
