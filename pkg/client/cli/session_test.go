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

// cutOff is a daemon that does not reach the cluster.
type cutOff struct {
	daemonv1.DaemonServiceClient
	is     *daemonv1.StatusResponse
	ending bool
}

func (*cutOff) Connect(
	context.Context, *daemonv1.ConnectRequest, ...grpc.CallOption,
) (grpc.ServerStreamingClient[daemonv1.ConnectResponse], error) {
	return nil, errors.New("no route to host")
}

func (c *cutOff) Status(
	context.Context, *daemonv1.StatusRequest, ...grpc.CallOption,
) (*daemonv1.StatusResponse, error) {
	return c.is, nil
}

func (c *cutOff) Quit(context.Context, *daemonv1.QuitRequest, ...grpc.CallOption) (*daemonv1.QuitResponse, error) {
	c.ending = true
	return &daemonv1.QuitResponse{}, nil
}

// A daemon whose session is gone after a sleep makes it again as soon as there is a network. Who
// asks before does not end it, nor the namespaces in which commands run.
func TestADaemonThatLostItsSessionStays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: "+
		"{server: 'https://127.0.0.1:1'}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n"), 0o600))
	o := &sessionOptions{globalOptions: &globalOptions{
		kubeconfig: genericclioptions.NewConfigFlags(true),
		paths:      ipc.Paths{Rootless: true},
	}}
	o.kubeconfig.KubeConfig = &file
	for name, c := range map[string]struct {
		is   *daemonv1.StatusResponse
		ends bool
	}{
		"it never had one":      {&daemonv1.StatusResponse{}, true},
		"it has lost it":        {&daemonv1.StatusResponse{Session: "alice-x2b4k"}, false},
		"it has one, elsewhere": {&daemonv1.StatusResponse{Session: "alice-x2b4k", Connected: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			client := &cutOff{is: c.is}
			_, err := o.connect(t.Context(), client)
			require.ErrorContains(t, err, "no route to host")
			require.Equal(t, c.ends, client.ending)
		})
	}
}
