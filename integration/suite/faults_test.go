package suite

import (
	"encoding/base64"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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

// asRoot runs detour where a daemon of root's is for all to find.
func asRoot(args ...string) (string, error) { return asRootFor("", args...) }

// asRootFor is that by way of sudo, with the number of who called it.
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

// One has the whole laptop on the cluster's network, the other an own one; neither sees or ends the other's.
func TestTwoUsersOnOneLaptop(t *testing.T) {
	root := asRoot
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

// listener is the process that listens on a unix socket.
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

// A daemon that a user has started with sudo is root's, and runs and reads what the user's kubeconfig names as the user.
func TestRootsDaemonServesItsUser(t *testing.T) {
	u := ordinaryUser(t)
	developer(t, "sue")
	kubectl(t, "-n", "shop", "create", "rolebinding", "sue", "--clusterrole=detour-user", "--serviceaccount=shop:sue")
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "rolebinding", "sue") })
	file := func(name, content string, mode os.FileMode) {
		path := filepath.Join(u.dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), mode))
		require.NoError(t, os.Chown(path, person, person))
	}
	authority, err := base64.StdEncoding.DecodeString(kubectl(t, "config", "view", "--flatten", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	require.NoError(t, err)
	file("ca.crt", string(authority), 0o600)
	file("token", kubectl(t, "-n", "shop", "create", "token", "sue"), 0o600)
	file("bin/get-token", `#!/bin/sh
id -u >> "$HOME/calls"
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s","expirationTimestamp":"%s"}}' "$(cat "$HOME/token")" "$(date -u -d '+2 sec' +%FT%TZ)"
`, 0o700)
	page := func() {
		t.Helper()
		text, err := get(http.DefaultClient, "http://"+clusterIP(t, "shop", "catalog"))
		require.NoError(t, err)
		require.Equal(t, "cluster", editionOf(text))
	}
	calls := func() []string {
		raw, _ := os.ReadFile(filepath.Join(u.dir, "calls"))
		return strings.Fields(string(raw))
	}
	for _, c := range []struct{ name, user string }{
		{"a token in a file", "tokenFile: token"},
		{"a credential plugin", "exec: {apiVersion: client.authentication.k8s.io/v1, command: get-token, interactiveMode: Never}"},
	} {
		file("kubeconfig", "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: '"+kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")+
			"', certificate-authority: ca.crt}}]\nusers: [{name: a, user: {"+c.user+"}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\n", 0o600)
		out, err := asRootFor(strconv.Itoa(person), "daemon", "--detach")
		require.NoError(t, err, out)
		t.Cleanup(func() { _, _ = asRoot("quit") })
		require.Eventually(t, func() bool { _, err := os.Stat("/run/detour/daemon.sock"); return err == nil }, patience, 20*time.Millisecond)
		u.detour("connect", "-n", "shop")
		page()
		if strings.HasPrefix(c.user, "exec") {
			first := len(calls())
			require.Eventually(t, func() bool { return len(calls()) >= first+2 }, 60*time.Second, 200*time.Millisecond, "the token is renewed")
			for _, uid := range calls() {
				require.Equal(t, strconv.Itoa(person), uid)
			}
			page()
		}
		u.detour("quit")
	}
	before := hostState(t)
	out, err := asRoot("connect", "-n", "shop")
	require.NoError(t, err, out)
	t.Cleanup(func() { _, _ = asRoot("quit") })
	require.NoError(t, syscall.Kill(listener(t, "/run/detour/daemon.sock"), syscall.SIGKILL))
	require.Eventually(t, func() bool {
		_, complaint, _ := u.try("status")
		return strings.Contains(complaint, "run `sudo detour status`")
	}, patience, 100*time.Millisecond)
	out, err = asRoot("status")
	require.NoError(t, err, out)
	require.Eventually(t, func() bool { return hostState(t) == before }, patience, 20*time.Millisecond)
	_, complaint, _ := u.try("status")
	require.Empty(t, complaint)
}
