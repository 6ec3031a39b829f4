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

// A second daemon leaves the first one's resolver configuration alone: it is in use, and its backup
// is the only copy of the original.
func TestSecondDaemonChangesNothing(t *testing.T) {
	dir := t.TempDir()
	p := ipc.Paths{Run: dir, State: dir}
	first, err := net.Listen("unix", p.Socket())
	require.NoError(t, err)
	defer first.Close()
	backup := filepath.Join(p.State, "resolv.conf.before")
	require.NoError(t, os.WriteFile(backup, []byte("nameserver 192.168.1.1\n"), 0o600))

	require.EqualError(t, Run(context.Background(), p, slog.New(slog.DiscardHandler)), "a daemon is already running")
	assert.FileExists(t, backup)
	again, err := net.Dial("unix", p.Socket())
	require.NoError(t, err, "the first one still answers")
	_ = again.Close()
}

// staging is a session's identity.
func staging() *identity {
	return &identity{
		request: &daemonv1.ConnectRequest{Context: "default", Namespace: "shop"}, server: "https://staging:6443",
	}
}

// Two clusters can have contexts of the same name.
func TestMismatch(t *testing.T) {
	i := staging()
	for name, c := range map[string]struct{ context, namespace, server, want string }{
		"the same": {context: "default", namespace: "shop", server: "https://staging:6443"},
		"another namespace": {
			context: "default", namespace: "bank", server: "https://staging:6443",
			want: "namespace shop of context default",
		},
		"another context": {
			context: "prod", namespace: "shop", server: "https://prod:6443", want: "namespace shop of context default",
		},
		"another cluster": {
			context: "default", namespace: "shop", server: "https://prod:6443",
			want: "namespace shop of context default at https://staging:6443",
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := &daemonv1.ConnectRequest{Context: c.context, Namespace: c.namespace}
			require.Equal(t, c.want, i.mismatch(req, c.server))
		})
	}
}

func TestDifference(t *testing.T) {
	i := staging()
	for name, c := range map[string]struct {
		change func(*daemonv1.ConnectRequest)
		want   string
	}{
		"nothing": {change: func(*daemonv1.ConnectRequest) {}},
		"transport": {
			change: func(r *daemonv1.ConnectRequest) { r.Transport = "upgrade" }, want: "without --transport upgrade",
		},
		"the default": {change: func(r *daemonv1.ConnectRequest) { r.Transport = "auto" }},
		"host loopback": {
			change: func(r *daemonv1.ConnectRequest) { r.HostLoopback = true }, want: "without --host-loopback",
		},
		"a flag": {
			change: func(r *daemonv1.ConnectRequest) {
				r.NetworkOverrides = &daemonv1.NetworkOverrides{AlsoProxy: []string{"10.0.0.0/8"}}
			},
			want: "with another --also-proxy",
		},
		"the namespace": {
			change: func(r *daemonv1.ConnectRequest) { r.Namespace = "bank" },
			want:   "to namespace shop of context default",
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := &daemonv1.ConnectRequest{Context: "default", Namespace: "shop"}
			c.change(req)
			require.Equal(t, c.want, i.difference(req, "https://staging:6443"))
		})
	}
}
