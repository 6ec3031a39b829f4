package cli

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// pollInterval is how often detour looks whether a daemon has started or ended.
const pollInterval = 20 * time.Millisecond

// daemonClient is a connection to a running daemon. The caller closes it.
type daemonClient struct {
	daemonv1.DaemonServiceClient
	conn *grpc.ClientConn
}

// Close closes the connection. The daemon keeps running.
func (c *daemonClient) Close() { _ = c.conn.Close() }

// dialDaemon connects to the daemon at p. It returns ipc.ErrNoDaemon if none runs.
func dialDaemon(ctx context.Context, p ipc.Paths) (*daemonClient, error) {
	conn, err := ipc.Dial(ctx, p)
	if err != nil {
		return nil, err
	}
	return &daemonClient{daemonv1.NewDaemonServiceClient(conn), conn}, nil
}
