package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// reach connects to a running daemon; nil without an error means that there is none.
func reach(p ipc.Paths) (*grpc.ClientConn, error) {
	conn, err := ipc.Dial(context.Background(), p)
	if errors.Is(err, ipc.ErrNoDaemon) {
		return nil, nil
	}
	return conn, err
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
