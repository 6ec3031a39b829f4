package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/detour-dev/detour/pkg/relay"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// errLaptop is a laptop that could not be reached.
var errLaptop = errors.New("the laptop cannot be had")

// relayDialer notices within seconds that a traffic-manager is gone without a word, with its node: requests must not wait for it. There is no
// TCP_USER_TIMEOUT: it ends a connection whose reader stands still, such as in a debugger.
var relayDialer = net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: time.Second, Count: 3}}

// open connects to the laptop of want, or to the app when want is nil or its laptop cannot be had, and says which of the two it is.
func (a *agent) open(ctx context.Context, want *target, client net.Conn, port uint16) (net.Conn, *target, error) {
	if want != nil {
		conn, err := a.dialLaptop(ctx, want, client)
		if err == nil {
			return conn, want, nil
		}
		if want.ErrorOnFailure {
			return nil, nil, fmt.Errorf("%w: %w", errLaptop, err)
		}
		a.log.Debug("the laptop cannot be had, the app answers", "intercept", want.Uid, "err", err)
	}
	conn, err := a.dialApp(ctx, client, port)
	if s := securedOf(client); s != nil && err == nil {
		conn, err = orClose(conn)(s.dialApp(ctx, conn))
	}
	return conn, nil, err
}

// dialApp asks the app on the address that the client used: it may not listen on any other.
func (a *agent) dialApp(ctx context.Context, client net.Conn, port uint16) (net.Conn, error) {
	local := client.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	d := net.Dialer{Timeout: appTimeout}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(local, port).String())
	if err != nil {
		return nil, fmt.Errorf("dial the app: %w", err)
	}
	return conn, nil
}

// dialLaptop opens a relayed connection, with TLS inside when the client's ended here and the laptop speaks it. Nothing of the client's
// has been sent when it fails.
func (a *agent) dialLaptop(ctx context.Context, t *target, client net.Conn) (net.Conn, error) {
	conn, err := a.dialRelay(ctx, t, client)
	if s := securedOf(client); s != nil && err == nil && !t.LocalPlaintext {
		return orClose(conn)(s.dialLaptop(ctx, t, conn))
	}
	return conn, err
}

func (a *agent) dialRelay(ctx context.Context, t *target, client net.Conn) (net.Conn, error) {
	return a.openLaptop(ctx, t, &agentv1.RelayHeader{Source: client.RemoteAddr().String(), Destination: client.LocalAddr().String()})
}

// openLaptop opens a relayed connection with a header.
func (a *agent) openLaptop(ctx context.Context, t *target, header *agentv1.RelayHeader) (net.Conn, error) {
	if t.silent.Load() {
		return nil, errors.New("the laptop could not be reached a moment ago")
	}
	open := a.stream
	if header.Datagrams {
		open = a.relayed
	}
	conn, silent, err := open(ctx, t, header)
	if silent && ctx.Err() == nil {
		a.leaveOut(t, header)
	}
	return conn, err
}

// relayed asks the traffic-manager for a connection to the laptop. silent says that nobody has said anything of it.
func (a *agent) relayed(ctx context.Context, t *target, header *agentv1.RelayHeader) (_ net.Conn, silent bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	conn, status, err := a.ask(ctx, t, header)
	if err == nil && status == agentv1.RelayStatus_RELAY_STATUS_OK {
		return conn, false, nil
	}
	if conn != nil {
		_ = conn.Close()
	}
	return nil, unheard(status, err), errors.Join(fmt.Errorf("the relay answered %s", status), err)
}

// unheard says whether an answer of the relay says nothing of the laptop.
func unheard(status agentv1.RelayStatus, err error) bool {
	return err != nil || status == agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE
}

// ask opens a connection to the relay with a header, and says what came back.
func (a *agent) ask(ctx context.Context, t *target, header *agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus, error) {
	now := t.access.Load()
	header.InterceptUid, header.Token = t.Uid, now.token
	plain, err := relayDialer.DialContext(ctx, "tcp", now.address)
	if err != nil {
		return nil, 0, fmt.Errorf("dial the relay: %w", err)
	}
	conn := relay.Client(plain, a.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, 0, fmt.Errorf("greet the relay: %w", err)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	status, err := openRelay(conn, header)
	_ = conn.SetDeadline(time.Time{})
	return conn, status, err
}

// leaveOut passes a laptop over that was silent, until it is not: that is found out in the background, so that no request waits for it.
func (a *agent) leaveOut(t *target, header *agentv1.RelayHeader) {
	if !t.silent.CompareAndSwap(false, true) {
		return
	}
	a.conns.Go(func() {
		for t.silent.Load() {
			select {
			case <-time.After(askAgain):
			case <-t.ctx.Done():
				return
			}
			conn, silent, _ := a.relayed(t.ctx, t, header)
			if conn != nil {
				_ = conn.Close()
			}
			t.silent.Store(silent)
		}
		a.tellChanged()
	})
}

func openRelay(conn net.Conn, h *agentv1.RelayHeader) (agentv1.RelayStatus, error) {
	if err := relay.WriteHeader(conn, h); err != nil {
		return 0, err
	}
	return relay.ReadStatus(conn)
}
