package suite

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// full mounts a file system without any room in place of a directory.
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

// Without room for logs and notes the daemon still works, unless it could not restore what it would
// change.
func TestFullDisk(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog))
	t.Run("in namespaces", func(t *testing.T) {
		u := kit.NewUser(t)
		full(t, u.RuntimeDir+"/state/detour")
		u.Detour("connect", "-n", "shop")
		defer u.Try("quit")
		for range 3 {
			require.Equal(t, "cluster", kit.EditionOf(u.Inside("curl", "-sS", "--max-time", "10",
				"http://catalog.shop/")))
		}
		require.Contains(t, u.Detour("status"), "connected")
		u.Detour("quit")
		u.WaitForNoProcess()
	})
	t.Run("of the whole laptop", func(t *testing.T) {
		before := kit.HostState(t)
		full(t, os.Getenv("DETOUR_STATE_DIR"))
		said := kit.DetourFails(t, "connect", "-n", "shop")
		require.Contains(t, said, "keep a copy of /etc/resolv.conf")
		require.Contains(t, said, "no space left on device")
		require.Equal(t, before, kit.HostState(t))
		require.Equal(t, "not connected", kit.Detour(t, "status"))
	})
}

// asRoot runs detour as root, with the daemon's socket in the place where every user finds it.
func asRoot(args ...string) (string, error) { return asRootFor("", args...) }

// asRootFor is asRoot by way of sudo: uid is the number of the user who called sudo.
func asRootFor(uid string, args ...string) (string, error) {
	cmd := exec.Command("detour", args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DETOUR_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if uid != "" {
		cmd.Env = append(cmd.Env, "SUDO_UID="+uid)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Root has the whole laptop on the cluster's network, and a user has a network of their own.
// Neither sees or ends the other's session.
func TestTwoUsersOnOneLaptop(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog))
	root := asRoot
	u := kit.NewUser(t)
	// A test that kills a daemon leaves its session behind until the traffic-manager gives it up.
	before := kit.SessionsOf(t, kit.HostName(t))
	out, err := root("connect", "-n", "shop")
	require.NoError(t, err, out)
	t.Cleanup(func() { _, _ = root("quit") })
	require.Equal(t, "not connected", u.Detour("status"))
	u.Detour("connect", "-n", "shop")
	t.Cleanup(func() { u.Try("quit") })
	require.Equal(t, "cluster", kit.EditionOf(u.Inside("curl", "-sS", "--max-time", "10", "http://catalog.shop/")))
	made := slices.DeleteFunc(kit.SessionsOf(t, kit.HostName(t)), func(s kit.Session) bool {
		return slices.Contains(before, s)
	})
	require.Len(t, made, 1)
	require.Len(t, kit.SessionsOf(t, u.HostName()), 1)
	u.Detour("quit")
	u.WaitForNoProcess()
	page, err := kit.Get(kit.NewConnections(), "http://"+kit.ClusterIP(t, "shop", "catalog"))
	require.NoError(t, err)
	require.Equal(t, "cluster", kit.EditionOf(page))
	_, complaint, code := u.Try("connect", "-n", "shop", "--rootless=false")
	require.Equal(t, 1, code)
	require.Contains(t, complaint, "the daemon belongs to another user")
	out, err = root("quit")
	require.NoError(t, err, out)
}

// listener returns the process that listens on a unix socket.
func listener(t *testing.T, socket string) (pid int) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	require.NoError(t, err)
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		is, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		require.NoError(t, err)
		pid = int(is.Pid)
	}))
	return pid
}

// A daemon that a user has started with sudo is root's. It runs the plugins and reads the files
// that the user's kubeconfig names as that user.
func TestRootsDaemonServesItsUser(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog))
	u := kit.NewUser(t)
	kit.Developer(t, "sue")
	authority, err := base64.StdEncoding.DecodeString(kit.Kubectl(t, "config", "view", "--flatten", "--raw", "-o",
		"jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	require.NoError(t, err)
	u.WriteFile("ca.crt", string(authority), 0o600)
	u.WriteFile("token", kit.Kubectl(t, "-n", "shop", "create", "token", "sue"), 0o600)
	u.WriteFile("bin/get-token", `#!/bin/sh
id -u >> "$HOME/calls"
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",
"status":{"token":"%s","expirationTimestamp":"%s"}}' "$(cat "$HOME/token")" "$(date -u -d '+2 sec' +%FT%TZ)"
`, 0o700)
	page := func() {
		t.Helper()
		text, err := kit.Get(kit.NewConnections(), "http://"+kit.ClusterIP(t, "shop", "catalog"))
		require.NoError(t, err)
		require.Equal(t, "cluster", kit.EditionOf(text))
	}
	calls := func() []string {
		raw, _ := os.ReadFile(filepath.Join(u.Dir, "calls"))
		return strings.Fields(string(raw))
	}
	for _, c := range []struct{ name, user string }{
		{"a token in a file", "tokenFile: token"},
		{
			"a credential plugin",
			"exec: {apiVersion: client.authentication.k8s.io/v1, command: get-token, interactiveMode: Never}",
		},
	} {
		server := kit.Kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
		u.WriteFile("kubeconfig", fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: %q, certificate-authority: ca.crt}}]
users: [{name: a, user: {%s}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
`, server, c.user), 0o600)
		out, err := asRootFor(strconv.Itoa(u.UID), "daemon", "--detach")
		require.NoError(t, err, out)
		t.Cleanup(func() { _, _ = asRoot("quit") })
		kit.Eventually(t, func() bool { _, err := os.Stat("/run/detour/daemon.sock"); return err == nil })
		u.Detour("connect", "-n", "shop")
		page()
		if strings.HasPrefix(c.user, "exec") {
			first := len(calls())
			kit.Eventually(t, func() bool { return len(calls()) >= first+2 }, "the token is renewed")
			for _, uid := range calls() {
				require.Equal(t, strconv.Itoa(u.UID), uid)
			}
			page()
		}
		u.Detour("quit")
	}
	before := kit.HostState(t)
	out, err := asRoot("connect", "-n", "shop")
	require.NoError(t, err, out)
	t.Cleanup(func() { _, _ = asRoot("quit") })
	require.NoError(t, syscall.Kill(listener(t, "/run/detour/daemon.sock"), syscall.SIGKILL))
	kit.Eventually(t, func() bool {
		_, complaint, _ := u.Try("status")
		return strings.Contains(complaint, "run `sudo detour status`")
	})
	out, err = asRoot("status")
	require.NoError(t, err, out)
	kit.Eventually(t, func() bool { return kit.HostState(t) == before })
	_, complaint, _ := u.Try("status")
	require.Empty(t, complaint)
}
