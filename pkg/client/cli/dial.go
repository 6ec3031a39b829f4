package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/detour-dev/detour/pkg/client/daemon"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const (
	// answerWithin is how long a daemon may take to greet; it needs well under a millisecond.
	answerWithin = 3 * time.Second
	askAgain     = 20 * time.Millisecond
)

var errOthers = errors.New("the daemon belongs to another user: use sudo")

// reach connects to a running daemon; nil without an error means that there is none. An open socket is not enough: a daemon that was
// just killed has one for some milliseconds, and one that is stopped for as long as it is stopped.
func reach(p daemon.Paths) (*grpc.ClientConn, error) {
	ctx, done := context.WithTimeout(context.Background(), answerWithin)
	defer done()
	for ctx.Err() == nil {
		c, err := net.Dial("unix", p.Socket())
		if errors.Is(err, os.ErrPermission) {
			return nil, errOthers
		} else if err != nil {
			return nil, nil
		}
		_ = c.Close()
		conn, err := grpc.NewClient("unix:"+p.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, fmt.Errorf("reach the daemon: %w", err)
		}
		if greeted(ctx, conn) {
			return conn, nil
		}
		_ = conn.Close()
		time.Sleep(askAgain)
	}
	return nil, fmt.Errorf("the daemon does not answer: end it with `pkill -9 -f 'detour daemon'` and try again, or see %s", p.Log())
}

// greeted waits for the greeting of the server at conn's other end.
func greeted(ctx context.Context, conn *grpc.ClientConn) bool {
	conn.Connect()
	for {
		switch state := conn.GetState(); state {
		case connectivity.Ready:
			return true
		case connectivity.TransientFailure, connectivity.Shutdown:
			return false
		default:
			if !conn.WaitForStateChange(ctx, state) {
				return false
			}
		}
	}
}

// dial reaches a running daemon; nil without an error means that there is none.
func (a *app) dial() (daemonv1.DaemonServiceClient, func(), error) {
	conn, err := reach(a.paths)
	if conn == nil {
		return nil, func() {}, err
	}
	return daemonv1.NewDaemonServiceClient(conn), func() { _ = conn.Close() }, nil
}

// putBack undoes what a daemon that was killed left on the laptop, or says who can. The interface and its routes went with its process.
func (a *app) putBack() {
	if os.Geteuid() != 0 {
		if a.paths.Resolver().LeftBehind() {
			fmt.Fprintln(a.ErrOut, "warning: a daemon of root's has ended and left its /etc/resolv.conf behind, names may not resolve: run `sudo detour status`")
		}
		return
	}
	if a.paths.Rootless {
		return
	}
	if conn, err := reach(a.paths); conn != nil || err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return
	}
	if err := a.paths.Resolver().Restore(); err != nil && !errors.Is(err, os.ErrPermission) {
		fmt.Fprintln(a.ErrOut, "warning:", err)
	}
}
