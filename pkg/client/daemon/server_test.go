package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// A second daemon leaves the first one's resolver configuration alone: it is in use, and the copy is all there is of what was before.
func TestSecondDaemon(t *testing.T) {
	dir := t.TempDir()
	p := ipc.Paths{Run: dir, State: dir}
	first, err := net.Listen("unix", p.Socket())
	require.NoError(t, err)
	defer first.Close()
	kept := filepath.Join(p.State, "resolv.conf.before")
	require.NoError(t, os.WriteFile(kept, []byte("nameserver 192.168.1.1\n"), 0o600))

	require.EqualError(t, Run(context.Background(), p, slog.New(slog.DiscardHandler)), "a daemon is already running")
	assert.FileExists(t, kept)
	again, err := net.Dial("unix", p.Socket())
	require.NoError(t, err, "the first one still answers")
	_ = again.Close()
}

// Who asks for another cluster is not told to be connected, though the context's name be the same.
func TestElsewhere(t *testing.T) {
	s := &session{context: "default", namespace: "shop", server: "https://staging:6443"}
	for name, c := range map[string]struct{ context, namespace, server, want string }{
		"the same":          {"default", "shop", "https://staging:6443", ""},
		"another namespace": {"default", "bank", "https://staging:6443", "namespace shop of context default"},
		"another context":   {"prod", "shop", "https://prod:6443", "namespace shop of context default"},
		"another cluster":   {"default", "shop", "https://prod:6443", "namespace shop of context default at https://staging:6443"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, s.elsewhere(&daemonv1.ConnectRequest{Context: c.context, Namespace: c.namespace}, c.server))
		})
	}
}
