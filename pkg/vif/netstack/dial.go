package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Dial opens a TCP connection through the link. The connection has CloseWrite and Abort, which
// sends a RST.
func (t *Stack) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var queue waiter.Queue
	endpoint, failed := t.stack.NewEndpoint(tcp.ProtocolNumber, networkOf(to.Addr()), &queue)
	if failed != nil {
		return nil, fmt.Errorf("dial the laptop at %s: %s", to, failed)
	}
	ready, opened := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&ready)
	defer queue.EventUnregister(&ready)
	address := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(to.Addr().AsSlice()), Port: to.Port()}
	failed = endpoint.Connect(address)
	if _, started := failed.(*tcpip.ErrConnectStarted); started {
		select {
		case <-opened:
			failed = endpoint.LastError()
		case <-ctx.Done():
			endpoint.Abort()
			return nil, fmt.Errorf("dial the laptop at %s: %w", to, ctx.Err())
		}
	}
	if failed != nil {
		endpoint.Close()
		return nil, fmt.Errorf("dial the laptop at %s: %s", to, failed)
	}
	// A keepalive is not needed: WireGuard sees to liveness.
	endpoint.SocketOptions().SetDelayOption(false)
	c := &dialedConn{tcpFlow: tcpFlow{TCPConn: gonet.NewTCPConn(&queue, endpoint), endpoint: endpoint}}
	c.remove = t.dialed.add(to.Addr(), c.Abort)
	return c, nil
}

// Listen accepts TCP connections to one of the stack's own addresses.
func (t *Stack) Listen(at netip.AddrPort) (net.Listener, error) {
	address := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(at.Addr().AsSlice()), Port: at.Port()}
	l, err := gonet.ListenTCP(t.stack, address, networkOf(at.Addr()))
	if err != nil {
		return nil, fmt.Errorf("listen for laptops at %s: %w", at, err)
	}
	return l, nil
}

// dialedConn is a dialled connection that ResetDialed can reset together with others to the same
// address.
type dialedConn struct {
	tcpFlow
	remove func()
}

func (c *dialedConn) Close() error {
	c.remove()
	return c.TCPConn.Close()
}
