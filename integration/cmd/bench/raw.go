package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/detour-dev/detour/pkg/client/tunnel"
	"github.com/detour-dev/detour/pkg/vif"
)

// The raw limit of out.upgrade: the stream that detour's laptop would open, dialled in the same
// way, to a Service with the traffic-manager's name and port in the bench's namespace, and on it
// only bytes. They are those of the bulk protocol, but such a stream has no half-close: after 'u'
// come zeros, and a 1 for the end.

// answerRaw is the other end of the stream.
func answerRaw(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	const head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "
	if _, err := io.WriteString(conn, head+vif.UpgradeProtocol+"\r\n\r\n"); err != nil {
		return
	}
	serveBulk(&untilOne{ReadWriter: conn})
}

// untilOne ends after a 1.
type untilOne struct {
	io.ReadWriter
	asked, ended bool
}

func (u *untilOne) Read(b []byte) (int, error) {
	if u.ended {
		return 0, io.EOF
	}
	n, err := u.ReadWriter.Read(b)
	u.ended = u.asked && n > 0 && b[n-1] == 1
	u.asked = true // the first byte is the question
	return n, err
}

// rawRate is bulkRate on such a stream.
func rawRate(ctx context.Context, kubeconfig string, sending bool, duration time.Duration) (float64, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return 0, fmt.Errorf("read the kubeconfig: %w", err)
	}
	noPod := func(context.Context) (string, error) { return "", errors.ErrUnsupported }
	dialer, err := tunnel.New(config, namespace, tunnel.OnlyUpgrade, noPod)
	if err != nil {
		return 0, err
	}
	defer dialer.Close()
	stream, err := dialer.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	stop := time.AfterFunc(duration+20*time.Second, func() { _ = stream.Close() })
	defer stop.Stop()
	start := time.Now()
	if !sending {
		if _, err := stream.Write([]byte{down}); err != nil {
			return 0, fmt.Errorf("ask: %w", err)
		}
		return receiveFor(stream, start, duration)
	}
	if _, err := stream.Write([]byte{up}); err != nil {
		return 0, fmt.Errorf("ask: %w", err)
	}
	zeros := make([]byte, bulkBuffer)
	for time.Since(start) < duration {
		if _, err := stream.Write(zeros); err != nil {
			return 0, fmt.Errorf("send: %w", err)
		}
	}
	if _, err := stream.Write(append(bytes.Clone(zeros[:1]), 1)); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	return counted(stream, start)
}

// counted reads how many bytes the other end got.
func counted(r io.Reader, start time.Time) (float64, error) {
	count := make([]byte, 8)
	if _, err := io.ReadFull(r, count); err != nil {
		return 0, fmt.Errorf("read the count: %w", err)
	}
	return float64(binary.BigEndian.Uint64(count)) * 8 / time.Since(start).Seconds(), nil
}

// receiveFor counts what comes for a while.
func receiveFor(r io.Reader, start time.Time, duration time.Duration) (float64, error) {
	buf := make([]byte, bulkBuffer)
	var total uint64
	for time.Since(start) < duration {
		n, err := r.Read(buf)
		if err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
		total += uint64(n)
	}
	return float64(total) * 8 / time.Since(start).Seconds(), nil
}
