// Package tunnel opens the stream that carries WireGuard messages to the traffic-manager: an HTTP
// upgrade through the API server's service proxy, or a port-forward where the API server does not
// reach pods. It needs what kubectl needs and no more: the same address, the same credentials, the
// same HTTP proxy. Start with New and Dialer.Open.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif"
)

const (
	// dialTimeout bounds the connection to the API server. openTimeout bounds the opening of a
	// stream to the traffic-manager.
	dialTimeout = 10 * time.Second
	openTimeout = 20 * time.Second
)

// ErrNotInstalled means that the cluster has no traffic-manager.
var ErrNotInstalled = errors.New("the traffic-manager is not installed in the cluster: " +
	"run `detour install`, or ask an administrator to")

var errNoUpgrade = errors.New("something between this laptop and the API server drops HTTP Upgrade requests")

// The values of --transport: the best transport that works, or only one.
const (
	Auto            = "auto"
	OnlyUpgrade     = "upgrade"
	OnlyPortForward = "portforward"
)

// The names of the transports for people.
const (
	Upgrade     = "api-server-upgrade"
	PortForward = "port-forward"
)

// CheckTransport returns an error for a value of --transport that is not known. It accepts an empty
// value, which means Auto.
func CheckTransport(name string) error {
	if !slices.Contains([]string{"", Auto, OnlyUpgrade, OnlyPortForward}, name) {
		return fmt.Errorf("--transport %s is not known: use %s, %s or %s", name, Auto, OnlyUpgrade, OnlyPortForward)
	}
	return nil
}

// Dialer opens streams to the traffic-manager with one set of credentials. It may be used by
// several goroutines. Its owner must call Close.
type Dialer struct {
	config    *rest.Config
	transport http.RoundTripper
	base      *url.URL
	namespace string
	only      string
	pod       func(context.Context) (string, error)

	// upgrade and portForward open a stream of one transport. Tests replace them.
	upgrade     opener
	portForward opener

	// mu guards the fields below.
	mu     sync.Mutex
	spare  vif.Stream // replaces a worse stream; the next Open returns it
	closed bool
}

// New returns a Dialer to the traffic-manager in a namespace. only is a value of --transport. pod
// returns the name of the traffic-manager's pod; New does not call it. New does not change config.
func New(config *rest.Config, namespace, only string, pod func(context.Context) (string, error)) (*Dialer, error) {
	config = rest.CopyConfig(config)
	// Only HTTP/1.1 has upgrades. The request must outlive the timeout of ordinary requests.
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
	d := &Dialer{
		config: config, transport: credential.EndWithContext(transport), base: base,
		namespace: namespace, only: only, pod: pod,
	}
	d.upgrade, d.portForward = d.openUpgrade, d.openPortForward
	return d, nil
}

// Open opens a stream, which the caller owns. A refusal of the API server is an error of
// k8s.io/apimachinery/pkg/api/errors.
func (d *Dialer) Open(ctx context.Context) (vif.Stream, error) {
	switch d.only {
	case OnlyUpgrade:
		return d.upgrade(ctx)
	case OnlyPortForward:
		return d.portForward(ctx)
	default:
		return d.openAny(ctx)
	}
}
