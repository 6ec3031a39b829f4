package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
)

const (
	// forwardAfter is how long the API server may be silent about the upgrade before port-forward is tried too: one that cannot
	// reach pods may say so only after half a minute.
	forwardAfter = 3 * time.Second
	// climbAfter is how often a stream by port-forward looks whether the upgrade, which is faster, works meanwhile.
	climbAfter = 15 * time.Second
)

// opened is what came of one of the two ways.
type opened struct {
	stream vif.Stream
	err    error
}

// openAny tries the upgrade, and port-forward when it fails or does not answer.
func (d *Dialer) openAny(ctx context.Context) (vif.Stream, error) {
	if s := d.takeSpare(); s.ReadWriteCloser != nil {
		return s, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan opened, 2)
	running := 0
	try := func(open func(context.Context) (vif.Stream, error)) {
		running++
		go func() {
			s, err := open(ctx)
			results <- opened{s, err}
		}()
	}
	try(d.openUpgrade)
	silence := time.NewTimer(forwardAfter)
	defer silence.Stop()
	var failed error
	for forwarding := false; running > 0; {
		select {
		case r := <-results:
			running--
			if r.err == nil {
				cancel()
				go discard(results, running)
				if r.stream.Transport == PortForward {
					return d.climbing(r.stream), nil
				}
				return r.stream, nil
			}
			if failed == nil {
				failed = r.err
			} else {
				failed = fmt.Errorf("%w; nor by port-forward: %w", failed, r.err)
			}
			if forwarding || !mayForward(r.err) {
				continue
			}
		case <-silence.C:
			if forwarding {
				continue
			}
		}
		forwarding = true
		try(d.openForward)
	}
	return vif.Stream{}, failed
}

// mayForward says whether port-forward could do what the upgrade could not: the API server was reached, and knows user and service.
func mayForward(err error) bool {
	var status apierrors.APIStatus
	return errors.Is(err, errNoUpgrade) || errors.As(err, &status) && !apierrors.IsUnauthorized(err) && !errors.Is(err, ErrNotInstalled)
}

// discard closes what was opened too late.
func discard(results <-chan opened, count int) {
	for range count {
		if r := <-results; r.err == nil {
			_ = r.stream.Close()
		}
	}
}

// openForward opens a stream by port-forward to the traffic-manager's pod.
func (d *Dialer) openForward(ctx context.Context) (vif.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeTimeout)
	defer cancel()
	pod, err := d.pod(ctx)
	if err != nil {
		return vif.Stream{}, fmt.Errorf("find the traffic-manager's pod: %w", err)
	}
	conn, err := d.dialPod(ctx, pod)
	if err != nil {
		return vif.Stream{}, fmt.Errorf("open a port-forward to pod %s: %w", pod, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	stream, err := upgradeOver(conn)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		_ = conn.Close()
		return vif.Stream{}, fmt.Errorf("open the tunnel by port-forward: %w", err)
	}
	return vif.Stream{ReadWriteCloser: stream, Transport: PortForward}, nil
}

// dialPod connects as kubectl does: by WebSocket, or by SPDY where the API server is older.
func (d *Dialer) dialPod(ctx context.Context, pod string) (httpstream.Connection, error) {
	u := d.base.JoinPath("api", "v1", "namespaces", d.namespace, "pods", pod, "portforward")
	transport, upgrader, err := spdy.RoundTripperFor(d.config)
	if err != nil {
		return nil, err
	}
	viaSPDY := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	viaWebSocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, d.config)
	if err != nil {
		return nil, err
	}
	dialer := portforward.NewFallbackDialerForStreaming(viaWebSocket, viaSPDY, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	type dialled struct {
		conn httpstream.Connection
		err  error
	}
	done := make(chan dialled, 1)
	go func() { // it knows no context
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		done <- dialled{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// upgradeOver asks the traffic-manager for the tunnel on a forwarded connection.
func upgradeOver(conn httpstream.Connection) (io.ReadWriteCloser, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(wellknown.TunnelPort))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	complaints, err := conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	_ = complaints.Close() // nothing is said on it from here
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	go func() { // the kubelet says there why it gives up, and nothing else
		_, _ = io.Copy(io.Discard, complaints)
	}()
	if _, err := io.WriteString(data, "GET /tunnel HTTP/1.1\r\nHost: traffic-manager\r\nConnection: Upgrade\r\nUpgrade: "+vif.UpgradeProtocol+"\r\n\r\n"); err != nil {
		return nil, err
	}
	buffered := bufio.NewReader(data)
	response, err := http.ReadResponse(buffered, nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("Upgrade") != vif.UpgradeProtocol {
		return nil, fmt.Errorf("the traffic-manager answered %s", response.Status)
	}
	return &forwarded{Stream: data, buffered: buffered, conn: conn}, nil
}

// forwarded is a stream in a connection of its own.
type forwarded struct {
	httpstream.Stream
	buffered *bufio.Reader
	conn     httpstream.Connection
}

func (f *forwarded) Read(b []byte) (int, error) { return f.buffered.Read(b) }
func (f *forwarded) Close() error               { return f.conn.Close() }

// climber is a stream that ends when a better one is there.
type climber struct {
	io.ReadWriteCloser
	end  context.CancelFunc
	once sync.Once
}

func (c *climber) Close() (err error) {
	c.once.Do(func() {
		c.end()
		err = c.ReadWriteCloser.Close()
	})
	return err
}

// climbing looks from time to time whether the upgrade works. When it does the stream closes, and the next Open returns the better one.
func (d *Dialer) climbing(s vif.Stream) vif.Stream {
	ctx, cancel := context.WithCancel(context.Background())
	c := &climber{ReadWriteCloser: s.ReadWriteCloser, end: cancel}
	go func() {
		defer cancel()
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(climbAfter):
			}
			better, err := d.openUpgrade(ctx)
			if err != nil {
				continue
			}
			if ctx.Err() != nil {
				_ = better.Close()
				return
			}
			d.keepSpare(better)
			_ = c.Close()
			return
		}
	}()
	return vif.Stream{ReadWriteCloser: c, Transport: s.Transport}
}

func (d *Dialer) takeSpare() (s vif.Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, d.spare = d.spare, vif.Stream{}
	return s
}

func (d *Dialer) keepSpare(s vif.Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		_ = s.Close()
		return
	}
	if d.spare.ReadWriteCloser != nil {
		_ = d.spare.Close()
	}
	d.spare = s
}

// Close lets go of what was opened and not taken, also by a stream that climbs just now.
func (d *Dialer) Close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	if s := d.takeSpare(); s.ReadWriteCloser != nil {
		_ = s.Close()
	}
}
