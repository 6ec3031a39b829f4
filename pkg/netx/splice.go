package netx

import (
	"net"
	"sync"
)

// Splice copies both ways between a and b until both directions have ended, and closes both
// connections. It passes the end of a stream on as a half-close, and a failure as a reset.
func Splice(a, b net.Conn) {
	a, b = Wrap(a), Wrap(b)
	var both sync.WaitGroup
	direction := func(from, to net.Conn) {
		if err := Copy(to, from); err != nil {
			Abort(from)
			Abort(to)
			return
		}
		if !CloseWrite(to) {
			_ = to.Close()
		}
	}
	both.Go(func() { direction(a, b) })
	direction(b, a)
	both.Wait()
	_ = a.Close()
	_ = b.Close()
}
