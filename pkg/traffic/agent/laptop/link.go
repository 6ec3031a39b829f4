// Package laptop reaches the laptop that an intercept belongs to. The traffic-agent cannot dial a
// laptop: it dials the traffic-manager's relay, which joins the connection to the laptop through
// its session.
//
// Start with Dialer, which is all that the rest of the agent needs to know. Link implements it:
// most connections are mux streams on one relay connection (relayconn.go). DatagramLink carries the
// datagrams of a UDP intercept.
package laptop

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/mux"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// DialTimeout is how long the laptop may take to accept a connection before the app gets it.
	DialTimeout = 2 * time.Second
	// retryInterval is how often a Link tries whether a laptop that was silent can be reached
	// again.
	retryInterval = 500 * time.Millisecond
)

// ErrUnreachable is the error of a request that a laptop did not get, and that the app must not
// answer instead.
var ErrUnreachable = errors.New("the laptop is unreachable")

// Dialer reaches the laptop of one intercept.
type Dialer interface {
	// Dial connects a client to the process on the laptop, within DialTimeout. The caller owns the
	// connection and closes it. When Dial fails it leaves nothing open, and nothing of the client's
	// was sent: the app can answer instead.
	Dial(ctx context.Context, client Client) (net.Conn, error)
	// Reachable reports whether it is worth a try to dial. It is false from the moment when the
	// laptop does not answer to the moment when it answers again, which the Dialer finds out in the
	// background. Reachable never blocks.
	Reachable() bool
}

// Client is who a connection to a laptop is made for. The process on the laptop does not see these
// addresses: the daemon logs them, and its policy can refer to them.
type Client struct {
	Source      string // the address and port of the client
	Destination string // the address and port of the pod that the client dialed
}

// ClientOf returns the addresses of a client's connection to the pod.
func ClientOf(c net.Conn) Client {
	return Client{Source: c.RemoteAddr().String(), Destination: c.LocalAddr().String()}
}

// Config is what a Link needs of its agent.
type Config struct {
	UID string      // of the intercept
	TLS *tls.Config // authenticates the relay
	Log *slog.Logger
	// Go runs a task that ends at the latest when the context of New does. The agent waits for it.
	Go func(task func())
	// OnReachable is called, in a goroutine of its own, when the laptop answers again after it was
	// silent. It may be nil.
	OnReachable func()
}

// Access is what it takes to reach a laptop through the traffic-manager. It changes whenever the
// agent connects to another replica of the manager.
type Access struct {
	Address string // of the relay
	Token   []byte
}

var _ Dialer = (*Link)(nil)

// Link is the connection state to the laptop of one intercept. It implements Dialer, and is safe
// for concurrent use.
type Link struct {
	config Config
	ctx    context.Context // ends with the intercept
	access atomic.Pointer[Access]
	silent atomic.Bool // the laptop did not answer; see retry
	relays relayConns
}

// New returns the Link of an intercept that ends with ctx. SetAccess must be called before Dial.
// New opens nothing, and a Link need not be closed: when ctx ends, its relay connection takes no
// more streams and ends with the last of them.
func New(ctx context.Context, config Config) *Link { return &Link{config: config, ctx: ctx} }

// Access returns the present access.
func (l *Link) Access() Access { return *l.access.Load() }

// SetAccess makes new connections use another access. Connections that are open stay where they
// are.
func (l *Link) SetAccess(now Access) {
	before := l.access.Swap(&now)
	if before != nil && (before.Address != now.Address || !bytes.Equal(before.Token, now.Token)) {
		l.silent.Store(false)
		l.relays.renew()
	}
}

// Reachable implements Dialer.
func (l *Link) Reachable() bool { return !l.silent.Load() }

// Dial implements Dialer.
func (l *Link) Dial(ctx context.Context, client Client) (net.Conn, error) {
	return l.open(ctx, &agentv1.RelayHeader{Source: client.Source, Destination: client.Destination}, l.dialStream)
}

// DialDatagrams opens a connection of its own that carries the frames of pkg/relay/datagram. The
// contract is that of Dial.
func (l *Link) DialDatagrams(ctx context.Context) (net.Conn, error) {
	return l.open(ctx, &agentv1.RelayHeader{Datagrams: true}, l.dialPlain)
}

type dialFunc func(context.Context, *agentv1.RelayHeader) (_ net.Conn, silent bool, _ error)

func (l *Link) open(ctx context.Context, header *agentv1.RelayHeader, dial dialFunc) (net.Conn, error) {
	if l.silent.Load() {
		return nil, errors.New("the laptop did not answer a moment ago")
	}
	conn, silent, err := dial(ctx, header)
	if silent && ctx.Err() == nil {
		l.markSilent(header)
	}
	return conn, err
}

// markSilent makes Dial fail at once until the laptop answers. A task finds that out, so that no
// request waits for it.
func (l *Link) markSilent(header *agentv1.RelayHeader) {
	if l.silent.CompareAndSwap(false, true) {
		l.config.Go(func() { l.retry(header) })
	}
}

// retry dials until the laptop answers, with a connection or a refusal.
func (l *Link) retry(header *agentv1.RelayHeader) {
	for l.silent.Load() {
		select {
		case <-time.After(retryInterval):
		case <-l.ctx.Done():
			return
		}
		conn, silent, _ := l.dialPlain(l.ctx, header)
		if conn != nil {
			_ = conn.Close()
		}
		l.silent.Store(silent)
	}
	if l.config.OnReachable != nil {
		l.config.OnReachable()
	}
}

// relayDialer notices within 6 s that a traffic-manager has vanished together with its node,
// because requests must not wait for it. It sets no TCP_USER_TIMEOUT: that would end a connection
// whose reader stands still, such as in a debugger.
var relayDialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: time.Second, Count: 3},
}

// dialPlain opens a relay connection of its own to the laptop. silent reports whether the laptop
// did not answer at all: a refusal is an answer.
func (l *Link) dialPlain(ctx context.Context, header *agentv1.RelayHeader) (_ net.Conn, silent bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	conn, status, err := l.dialRelay(ctx, header)
	if err == nil && status == agentv1.RelayStatus_RELAY_STATUS_OK {
		return conn, false, nil
	}
	if conn != nil {
		_ = conn.Close()
	}
	return nil, isSilence(status, err), relayError(status, err)
}

// isSilence reports whether the relay's answer proves nothing about the process on the laptop.
func isSilence(status agentv1.RelayStatus, err error) bool {
	return err != nil || status == agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE
}

func relayError(status agentv1.RelayStatus, err error) error {
	return errors.Join(fmt.Errorf("the relay answered %s", status), err)
}

// dialRelay connects to the relay, sends a header and reads the status. ctx must have a deadline.
// The connection is not nil when the relay was reached, even with an error or a refusal: the caller
// closes it.
func (l *Link) dialRelay(
	ctx context.Context, header *agentv1.RelayHeader,
) (net.Conn, agentv1.RelayStatus, error) {
	access := l.access.Load()
	header.InterceptUid, header.Token = l.config.UID, access.Token
	plain, err := relayDialer.DialContext(ctx, "tcp", access.Address)
	if err != nil {
		return nil, 0, fmt.Errorf("dial the relay: %w", err)
	}
	conn := relay.Client(plain, l.config.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, 0, fmt.Errorf("make TLS with the relay: %w", err)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	status, err := requestRelay(conn, header)
	_ = conn.SetDeadline(time.Time{})
	return conn, status, err
}

func requestRelay(conn net.Conn, h *agentv1.RelayHeader) (agentv1.RelayStatus, error) {
	if err := relay.WriteHeader(conn, h); err != nil {
		return 0, err
	}
	return relay.ReadStatus(conn)
}

// StreamOf returns the mux stream that carries a connection to a laptop, below TLS and wrappers;
// nil if none does.
func StreamOf(c net.Conn) *mux.Stream {
	s, _ := netx.As[*mux.Stream](c)
	return s
}
