package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
)

// openUpgrade opens a stream by an HTTP/1.1 upgrade through the API server's service proxy.
func (d *Dialer) openUpgrade(ctx context.Context) (vif.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	service := wellknown.TrafficManager + ":" + wellknown.TunnelPortName
	path := d.base.JoinPath("api", "v1", "namespaces", d.namespace, "services", service, "proxy", "tunnel")
	var below *netx.CorkConn
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		below, _ = netx.As[*netx.CorkConn](got.Conn)
	}})
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
		stream = &upgraded{ReadWriteCloser: stream, below: below, startup: newStartupLimiter(below.Conn)}
	}
	return vif.Stream{ReadWriteCloser: stream, Transport: Upgrade}, nil
}

// upgraded is a stream whose writes reach the network whole, and not one TLS record at a time.
type upgraded struct {
	io.ReadWriteCloser
	below   *netx.CorkConn
	startup *startupLimiter
}

func (u *upgraded) Write(b []byte) (int, error) {
	u.startup.note(len(b))
	u.below.Cork()
	n, err := u.ReadWriteCloser.Write(b)
	if failed := u.below.Uncork(); err == nil {
		err = failed
	}
	return n, err
}

// refusal reads why the API server refused the upgrade.
func refusal(response *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return &apierrors.StatusError{ErrStatus: statusOf(response, body)}
}
