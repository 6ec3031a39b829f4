package netstack

import (
	"context"
	"net"
	"net/netip"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	// dialAgain is how long a dial may go unanswered before connect dials once more, in parallel,
	// from another source port. A node's connection tracking can remember a source port for 10 s
	// after a pod that has ended reset the port's last connection. Retransmitted SYNs follow that
	// entry to the pod that is gone, where nobody answers.
	dialAgain       = 500 * time.Millisecond
	HubDialAttempts = 3
)

// HubDialer dials the cluster's destinations. It notices within half a minute that a peer is gone
// without a word, as with a pod whose node is lost. It sets no TCP_USER_TIMEOUT, because that would
// end a connection whose reader stands still.
func HubDialer() net.Dialer {
	return net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
}

// connect dials TCP, up to as many times in parallel as attempts says. The first answer counts, and
// that may be a refusal.
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
				case <-ctx.Done(): // another dial was first
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
