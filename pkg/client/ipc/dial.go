package ipc

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
)

const (
	// answerTimeout is how long Dial waits for the daemon's HTTP/2 preface. A healthy daemon needs
	// well under a millisecond.
	answerTimeout = 3 * time.Second
	// redialPause is the pause between two attempts of Dial.
	redialPause = 20 * time.Millisecond
)

var (
	// ErrNoDaemon means that no daemon listens on the socket.
	ErrNoDaemon = errors.New("no daemon is running")
	// ErrOtherUser means that the socket belongs to another user's daemon.
	ErrOtherUser = errors.New("the daemon belongs to another user: use sudo")
)

// Dial connects to a running daemon. The caller closes the connection. Dial returns ErrNoDaemon if
// there is none, and ErrOtherUser if the daemon serves another user.
//
// An open socket is not enough: a daemon that was just killed keeps one for some milliseconds, and
// a stopped process keeps one for as long as it is stopped. Dial therefore waits for the daemon's
// first bytes.
func Dial(ctx context.Context, p Paths) (*grpc.ClientConn, error) {
	waiting, done := context.WithTimeout(ctx, answerTimeout)
	defer done()
	for waiting.Err() == nil {
		c, err := net.Dial("unix", p.Socket())
		if errors.Is(err, os.ErrPermission) {
			return nil, ErrOtherUser
		} else if err != nil {
			return nil, ErrNoDaemon
		}
		_ = c.Close()
		conn, err := grpc.NewClient("unix:"+p.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, fmt.Errorf("reach the daemon: %w", err)
		}
		if waitUntilReady(waiting, conn) {
			return conn, nil
		}
		_ = conn.Close()
		select {
		case <-waiting.Done():
		case <-time.After(redialPause):
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("the daemon does not answer: "+
		"end it with `pkill -9 -f 'detour daemon'` and try again, or see %s", p.Log())
}

// waitUntilReady reports whether the server at the other end has sent its preface before ctx ends.
func waitUntilReady(ctx context.Context, conn *grpc.ClientConn) bool {
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
