package netx

import (
	"errors"
	"log/slog"
	"net"
	"time"
)

// AcceptPause is how long to wait after an accept that failed, for example because the process has
// too many open files: that passes, and clients wait in the listener's queue meanwhile.
const AcceptPause = 10 * time.Millisecond

// AcceptLoop gives each connection that l accepts to handle, one at a time, until l is closed.
// handle owns the connection and starts a goroutine if it takes its time. Other failures are logged
// and tried again.
func AcceptLoop(l net.Listener, log *slog.Logger, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			handle(c)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			log.Warn("accepting a connection failed", "address", l.Addr(), "err", err)
			time.Sleep(AcceptPause)
		}
	}
}
