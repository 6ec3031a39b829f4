package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// offlineDaemon is a daemon that cannot reach the cluster.
type offlineDaemon struct {
	daemonv1.DaemonServiceClient
	status *daemonv1.StatusResponse
	quit   bool
}

func (*offlineDaemon) Connect(
	context.Context, *daemonv1.ConnectRequest, ...grpc.CallOption,
) (grpc.ServerStreamingClient[daemonv1.ConnectResponse], error) {
	return nil, errors.New("no route to host")
}

func (d *offlineDaemon) Status(
	context.Context, *daemonv1.StatusRequest, ...grpc.CallOption,
) (*daemonv1.StatusResponse, error) {
	return d.status, nil
}

func (d *offlineDaemon) Quit(
	context.Context, *daemonv1.QuitRequest, ...grpc.CallOption,
) (*daemonv1.QuitResponse, error) {
	d.quit = true
	return &daemonv1.QuitResponse{}, nil
}

// A daemon that has lost its session while the laptop slept restores it as soon as there is a
// network. A command that fails before that must not end the daemon, nor the namespaces of running
// commands.
func TestADaemonThatLostItsSessionStays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: "+
		"{server: 'https://127.0.0.1:1'}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n"),
		0o600))
	o := &sessionOptions{globalOptions: &globalOptions{
		kubeconfig: genericclioptions.NewConfigFlags(true),
		paths:      ipc.Paths{Rootless: true},
	}}
	o.kubeconfig.KubeConfig = &file
	for name, c := range map[string]struct {
		status *daemonv1.StatusResponse
		quits  bool
	}{
		"it never had one":              {status: &daemonv1.StatusResponse{}, quits: true},
		"it has lost it":                {status: &daemonv1.StatusResponse{Session: "alice-x2b4k"}},
		"it has one in another cluster": {status: &daemonv1.StatusResponse{Session: "alice-x2b4k", Connected: true}},
	} {
		t.Run(name, func(t *testing.T) {
			client := &offlineDaemon{status: c.status}
			_, err := o.connect(t.Context(), client)
			require.ErrorContains(t, err, "no route to host")
			require.Equal(t, c.quits, client.quit)
		})
	}
}
