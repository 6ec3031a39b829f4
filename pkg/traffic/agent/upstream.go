package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
)

// open connects to the laptop of want, or to the app if want is nil or its laptop is unreachable. It returns the target that it
// has connected to, which is nil for the app.
func (a *agent) open(ctx context.Context, want *target, client net.Conn, port uint16) (net.Conn, *target, error) {
	if want != nil {
		conn, err := a.dialLaptop(ctx, want, client)
		if err == nil {
			return conn, want, nil
		}
		if want.ErrorOnFailure {
			return nil, nil, fmt.Errorf("%w: %w", laptop.ErrUnreachable, err)
		}
		a.log.Debug("the laptop is unreachable, the app answers", "intercept", want.Uid, "err", err)
	}
	conn, err := a.dialApp(ctx, client, port)
	if s := securedOf(client); s != nil && err == nil {
		conn, err = orClose(conn)(s.dialApp(ctx, conn))
	}
	return conn, nil, err
}

// dialApp connects to the app on the address that the client used: the app may not listen on any other.
func (a *agent) dialApp(ctx context.Context, client net.Conn, port uint16) (net.Conn, error) {
	local := client.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	d := net.Dialer{Timeout: appTimeout}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(local, port).String())
	if err != nil {
		return nil, fmt.Errorf("dial the app: %w", err)
	}
	return conn, nil
}

// dialLaptop connects to the process on the laptop. It speaks TLS with the process if the client's TLS ends in this agent and the
// process speaks it. When it fails, nothing of the client's was sent.
func (a *agent) dialLaptop(ctx context.Context, t *target, client net.Conn) (net.Conn, error) {
	conn, err := t.laptop.Dial(ctx, laptop.ClientOf(client))
	if s := securedOf(client); s != nil && err == nil && !t.LocalPlaintext {
		return orClose(conn)(s.dialLaptop(ctx, t, conn))
	}
	return conn, err
}
