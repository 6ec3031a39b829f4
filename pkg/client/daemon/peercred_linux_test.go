package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// otherUser is a UID that nobody has.
const otherUser = 12345

// TestConnectAsOtherUser is run by TestDaemonOfRootConfinesOtherUsers as another user: it asks the
// daemon to connect and prints the error.
func TestConnectAsOtherUser(t *testing.T) {
	socket := os.Getenv("DETOUR_TEST_SOCKET")
	if socket == "" {
		t.Skip("TestDaemonOfRootConfinesOtherUsers runs it")
	}
	kubeconfig, err := io.ReadAll(os.Stdin)
	require.NoError(t, err)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	stream, err := daemonv1.NewDaemonServiceClient(conn).Connect(t.Context(), &daemonv1.ConnectRequest{
		Kubeconfig: kubeconfig, Namespace: "shop", ManagerNamespace: "detour", User: "eve",
	})
	require.NoError(t, err)
	for err == nil {
		_, err = stream.Recv()
	}
	fmt.Printf("ERROR: %s\n", status.Convert(err).Message())
}

// The daemon of root runs and reads nothing with root's rights that another user has named. The
// test needs no cluster: client-go runs a plugin before it dials the API server.
func TestDaemonOfRootConfinesOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only a daemon of root serves another user")
	}
	dir, err := os.MkdirTemp("", "detour-peer-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	home := filepath.Join(dir, "home")
	require.NoError(t, os.Mkdir(home, 0o700))
	require.NoError(t, os.Chown(home, otherUser, otherUser))
	plugins := filepath.Join(dir, "plugins")
	require.NoError(t, os.Mkdir(plugins, 0o755))
	report := filepath.Join(home, "report")
	script := `#!/bin/sh
{
	id -u; id -g; id -G; grep -E '^(CapEff|CapPrm|NoNewPrivs)' /proc/self/status
	echo "$COLOUR,$ROOTS,$KUBERNETES_EXEC_INFO"
} > ` + report + ` 2>&1
echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t"}}'` + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(plugins, "get-token"), []byte(script), 0o755))
	own, err := os.Executable()
	require.NoError(t, err)
	client := filepath.Join(dir, "client")
	out, err := exec.Command("cp", own, client).CombinedOutput()
	require.NoError(t, err, string(out))

	t.Setenv("SUDO_UID", fmt.Sprint(otherUser))
	t.Setenv("ROOTS", "root's own")
	p := ipc.Paths{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = Run(ctx, p, slog.New(slog.DiscardHandler)) })
	t.Cleanup(func() { cancel(); serving.Wait() })
	require.Eventually(t, func() bool {
		info, err := os.Stat(p.Socket())
		return err == nil && info.Sys().(*syscall.Stat_t).Uid == otherUser
	}, 20*time.Second, 10*time.Millisecond)

	// Nobody listens on this port.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := "https://" + l.Addr().String()
	require.NoError(t, l.Close())
	ask := func(cluster, user string) string {
		t.Helper()
		cmd := exec.Command(client, "-test.run", "^TestConnectAsOtherUser$", "-test.v")
		cmd.Env = []string{"DETOUR_TEST_SOCKET=" + p.Socket()}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: otherUser, Gid: otherUser, Groups: []uint32{otherUser, 23456},
		}}
		cmd.Stdin = bytes.NewReader(kubeconfigOf("server: '"+server+"'"+cluster, user))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		_, message, _ := strings.Cut(string(out), "ERROR: ")
		message, _, _ = strings.Cut(message, "\n")
		return message
	}

	t.Run("a credential plugin, with its environment", func(t *testing.T) {
		message := ask("", "exec: {apiVersion: client.authentication.k8s.io/v1, command: get-token, "+
			"interactiveMode: Never, provideClusterInfo: true, "+
			"env: [{name: PATH, value: '"+plugins+":/usr/bin:/bin'}, {name: COLOUR, value: blue}]}")
		require.Contains(t, message, "nothing listens there", "the plugin has run")
		raw, err := os.ReadFile(report)
		require.NoError(t, err)
		lines := strings.Split(string(raw), "\n")
		require.Equal(t, []string{
			"12345", "12345", "12345 23456", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1",
		}, lines[:6], string(raw))
		require.Contains(t, lines[6], `blue,,{"kind":"ExecCredential"`)
	})
	t.Run("a plugin that is not there", func(t *testing.T) {
		message := ask("", "exec: {apiVersion: client.authentication.k8s.io/v1, command: /nowhere/get-token, "+
			"interactiveMode: Never}")
		require.Contains(t, message, "the credential plugin of your kubeconfig failed")
	})
	for name, c := range map[string]struct{ cluster, user string }{
		"a token":               {user: "tokenFile: /etc/shadow"},
		"a certificate":         {user: "client-certificate: /etc/shadow, client-key: /etc/shadow"},
		"a key":                 {user: "client-certificate-data: YQ==, client-key: /etc/shadow"},
		"a certificate of a CA": {cluster: ", certificate-authority: /etc/shadow", user: "token: t"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, ask(c.cluster, c.user),
				"the daemon runs as root and does not read /etc/shadow for user 12345")
		})
	}
	t.Run("an auth provider", func(t *testing.T) {
		require.Contains(t, ask("", "auth-provider: {name: oidc}"), "the daemon runs as root and uses no auth provider")
	})
}
