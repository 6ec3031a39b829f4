package suite

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// full puts a file system without any room in place of a directory.
func full(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=777"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	f, err := os.Create(filepath.Join(dir, "filler"))
	require.NoError(t, err)
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
}

// Without room for logs and notes the daemon works all the same, unless it could not put back what it would change.
func TestFullDisk(t *testing.T) {
	t.Run("in namespaces", func(t *testing.T) {
		u := ordinaryUser(t)
		full(t, u.runtime+"/state/detour")
		u.detour("connect", "-n", "shop")
		defer u.try("quit")
		for range 3 {
			require.Equal(t, "cluster", editionOf(u.inside("curl", "-sS", "--max-time", "10", "http://catalog.shop/")))
		}
		require.Contains(t, u.detour("status"), "connected")
		u.detour("quit")
		requireNothingRuns(t)
	})
	t.Run("of the whole laptop", func(t *testing.T) {
		before := hostState(t)
		full(t, os.Getenv("DETOUR_STATE_DIR"))
		said := refused(t, "connect", "-n", "shop")
		require.Contains(t, said, "keep a copy of /etc/resolv.conf")
		require.Contains(t, said, "no space left on device")
		require.Equal(t, before, hostState(t))
		require.Equal(t, "not connected", detour(t, "status"))
	})
}

// One has the whole laptop on the cluster's network, the other an own one; neither sees or ends the other's.
func TestTwoUsersOnOneLaptop(t *testing.T) {
	// Where a daemon of root's is, for all to find.
	root := func(args ...string) (string, error) {
		cmd := exec.Command("detour", args...)
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "DETOUR_") {
				cmd.Env = append(cmd.Env, v)
			}
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	u := ordinaryUser(t)
	out, err := root("connect", "-n", "shop")
	require.NoError(t, err, out)
	t.Cleanup(func() { _, _ = root("quit") })
	require.Equal(t, "not connected", u.detour("status"))
	u.detour("connect", "-n", "shop")
	t.Cleanup(func() { u.try("quit") })
	require.Equal(t, "cluster", editionOf(u.inside("curl", "-sS", "--max-time", "10", "http://catalog.shop/")))
	require.Len(t, strings.Split(kubectl(t, "-n", "shop", "get", "sessions", "-o", "name"), "\n"), 2)
	u.detour("quit")
	requireNothingRuns(t)
	page, err := get(http.DefaultClient, "http://"+clusterIP(t, "shop", "catalog"))
	require.NoError(t, err)
	require.Equal(t, "cluster", editionOf(page))
	_, complaint, code := u.try("connect", "-n", "shop", "--rootless=false")
	require.Equal(t, 1, code)
	require.Contains(t, complaint, "the daemon belongs to another user")
	out, err = root("quit")
	require.NoError(t, err, out)
}
