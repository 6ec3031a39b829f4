package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/wellknown"
)

// openPortForward opens a stream by a port-forward to the traffic-manager's pod.
func (d *Dialer) openPortForward(ctx context.Context) (vif.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
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

// dialPod connects to a pod as kubectl does: by WebSocket, or by SPDY if the API server is older.
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
	type result struct {
		conn httpstream.Connection
		err  error
	}
	done := make(chan result, 1)
	// Dial takes no context. The goroutine ends when Dial does; nobody waits for it.
	go func() {
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		// The goroutine closes a connection that comes too late. It ends when Dial does.
		go func() {
			if r := <-done; r.err == nil {
				_ = r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// upgradeOver asks the traffic-manager for the tunnel on a forwarded connection. The stream that it
// returns closes conn. After an error the caller closes conn.
func upgradeOver(conn httpstream.Connection) (io.ReadWriteCloser, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(wellknown.TunnelPort))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	failures, err := conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	_ = failures.Close() // only the kubelet writes to this stream
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	// The kubelet writes there why it gives up. The goroutine ends with the connection.
	go func() { _, _ = io.Copy(io.Discard, failures) }()
	request := "GET /tunnel HTTP/1.1\r\nHost: traffic-manager\r\nConnection: Upgrade\r\nUpgrade: " +
		vif.UpgradeProtocol + "\r\n\r\n"
	if _, err := io.WriteString(data, request); err != nil {
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

// forwarded is the only data stream of a port-forward connection.
type forwarded struct {
	httpstream.Stream
	buffered *bufio.Reader
	conn     httpstream.Connection
}

func (f *forwarded) Read(b []byte) (int, error) { return f.buffered.Read(b) }
func (f *forwarded) Close() error               { return f.conn.Close() }
