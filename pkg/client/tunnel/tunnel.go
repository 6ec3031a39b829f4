// Package tunnel opens the stream that carries WireGuard: an HTTP upgrade to the traffic-manager through the API server's own
// service proxy, or through a port-forward where the API server does not reach pods. It needs nothing that kubectl does not need: the
// same address, the same credentials, the same HTTP proxy.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
)

const (
	// dialTimeout bounds the connection to the API server, upgradeTimeout the whole way to the traffic-manager.
	dialTimeout    = 10 * time.Second
	upgradeTimeout = 20 * time.Second
)

// ErrNotInstalled says that there is no traffic-manager to open a tunnel to.
var ErrNotInstalled = errors.New("the traffic-manager is not installed in the cluster: run `detour install`, or ask an administrator to")

var errNoUpgrade = errors.New("the way to the API server does not pass HTTP upgrades on")

// What a user may choose with --transport: the best path that works, or only one.
const (
	Auto            = "auto"
	OnlyUpgrade     = "upgrade"
	OnlyPortForward = "portforward"
)

// The names of the streams for people.
const (
	Upgrade     = "api-server-upgrade"
	PortForward = "port-forward"
)

// CheckTransport says what is wrong with a --transport.
func CheckTransport(name string) error {
	if !slices.Contains([]string{"", Auto, OnlyUpgrade, OnlyPortForward}, name) {
		return fmt.Errorf("--transport %s is not known: use %s, %s or %s", name, Auto, OnlyUpgrade, OnlyPortForward)
	}
	return nil
}

// Dialer opens tunnels with one set of credentials.
type Dialer struct {
	config    *rest.Config
	transport http.RoundTripper
	base      *url.URL
	namespace string
	only      string
	pod       func(context.Context) (string, error)

	mu     sync.Mutex
	spare  vif.Stream // was opened in place of a worse one, and waits for its Open
	closed bool
}

// New makes a Dialer to the traffic-manager in a namespace, that opens what a --transport says. pod finds the name of the
// traffic-manager's pod.
func New(config *rest.Config, namespace, only string, pod func(context.Context) (string, error)) (*Dialer, error) {
	config = rest.CopyConfig(config)
	// An upgrade is HTTP/1.1's. The request must outlive any timeout of ordinary ones.
	config.NextProtos = []string{"http/1.1"}
	config.Timeout = 0
	if config.Dial == nil {
		d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second, Control: smallSendQueue}
		config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &netx.CorkConn{Conn: netx.Wrap(c)}, nil
		}
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("make the transport to the API server: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	return &Dialer{config: config, transport: credential.EndWithContext(transport), base: base, namespace: namespace, only: only, pod: pod}, nil
}

// Open opens a stream. What the API server refuses comes back as its own error (k8s.io/apimachinery/pkg/api/errors).
func (d *Dialer) Open(ctx context.Context) (vif.Stream, error) {
	switch d.only {
	case OnlyUpgrade:
		return d.openUpgrade(ctx)
	case OnlyPortForward:
		return d.openForward(ctx)
	default:
		return d.openAny(ctx)
	}
}

func (d *Dialer) openUpgrade(ctx context.Context) (vif.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeTimeout)
	defer cancel()
	path := d.base.JoinPath("api", "v1", "namespaces", d.namespace, "services", wellknown.TrafficManager+":"+wellknown.TunnelPortName, "proxy", "tunnel")
	var below *netx.CorkConn
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { below, _ = netx.As[*netx.CorkConn](got.Conn) }})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, path.String(), nil)
	if err != nil {
		return vif.Stream{}, fmt.Errorf("make the request for the tunnel: %w", err)
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", vif.UpgradeProtocol)
	response, err := d.transport.RoundTrip(request)
	if err != nil {
		return vif.Stream{}, fmt.Errorf("open the tunnel: %w", err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		err := refusal(response)
		if apierrors.IsNotFound(err) {
			err = errors.Join(ErrNotInstalled, err)
		}
		return vif.Stream{}, fmt.Errorf("open the tunnel: %w", err)
	}
	stream, ok := response.Body.(io.ReadWriteCloser)
	if !ok || response.Header.Get("Upgrade") != vif.UpgradeProtocol {
		_ = response.Body.Close()
		return vif.Stream{}, fmt.Errorf("open the tunnel: %w", errNoUpgrade)
	}
	if below != nil {
		stream = &upgraded{ReadWriteCloser: stream, below: below, brake: newBrake(below.Conn)}
	}
	return vif.Stream{ReadWriteCloser: stream, Transport: Upgrade}, nil
}

// upgraded is a stream whose writes reach the network whole, and not in records of TLS.
type upgraded struct {
	io.ReadWriteCloser
	below *netx.CorkConn
	brake *brake
}

func (u *upgraded) Write(b []byte) (int, error) {
	u.brake.note(len(b))
	u.below.Cork()
	n, err := u.ReadWriteCloser.Write(b)
	if failed := u.below.Uncork(); err == nil {
		err = failed
	}
	return n, err
}

// refusal reads the API server's reason.
func refusal(response *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return &apierrors.StatusError{ErrStatus: statusOf(response, body)}
}
