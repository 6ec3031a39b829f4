package exchange

import (
	"context"
	"net"
	"sync"
	"time"
)

// idle ends the wait for a request when the agent ends.
type idle struct {
	conn net.Conn

	// mu guards the fields below.
	mu      sync.Mutex
	waiting bool
	ended   bool
}

// endWith makes the end of ctx end the waits of a connection. The result forgets that.
func (i *idle) endWith(ctx context.Context, c net.Conn) (stop func() bool) {
	i.conn = c
	return context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.ended = true
		if i.waiting {
			_ = c.SetReadDeadline(time.Now())
		}
	})
}

// set notes whether the connection waits for a request. After the end a wait is over at once.
func (i *idle) set(waiting bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting = waiting
	switch {
	case !i.ended:
	case waiting:
		_ = i.conn.SetReadDeadline(time.Now())
	default:
		_ = i.conn.SetReadDeadline(time.Time{})
	}
}
