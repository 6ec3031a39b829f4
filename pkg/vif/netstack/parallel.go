package netstack

import (
	"context"
	"net"
	"net/netip"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	// dialAgain is how long a dial may go unanswered before it is tried once more beside it, from another port. A SYN to a Service's address
	// follows what the node remembers of its port: where an ended pod reset the port's last connection that is, for 10 s, the pod that is
	// no more, which nobody answers for, and the kernel's own retries follow it there.
	dialAgain       = 500 * time.Millisecond
	HubDialAttempts = 3
)

// clusterDialer notices within half a minute that whom it has dialled is gone without a word, as a pod whose node is lost. There is no
// TCP_USER_TIMEOUT: it ends a connection whose reader stands still.
func HubDialer() net.Dialer {
	return net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
}

// connect dials TCP, as often as attempts says. The first answer counts, be it a refusal.
func (f *forwarder) connect(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type answer struct {
		conn net.Conn
		err  error
	}
	answers := make(chan answer)
	again := time.NewTicker(dialAgain)
	defer again.Stop()
	for attempt := 1; ; attempt++ {
		if attempt <= max(1, f.attempts) {
			f.wg.Go(func() {
				c, err := f.dial(ctx, "tcp", to)
				select {
				case answers <- answer{c, err}:
				case <-ctx.Done(): // another was first
					if err == nil {
						_ = c.Close()
					}
				}
			})
		}
		select {
		case a := <-answers:
			return a.conn, a.err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-again.C:
		}
	}
}
