package kit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
	"github.com/detour-dev/detour/integration/cluster/badnet"
)

// RoamingLaptop is a laptop whose paths to the cluster can be cut: the API server is behind a
// relay, UDP behind a firewall.
type RoamingLaptop struct {
	*Laptop
	// API is the relay in front of the API server.
	API *badnet.Relay
}

// NewRoamingLaptop makes a laptop whose paths are all open.
func NewRoamingLaptop(t *testing.T) *RoamingLaptop {
	t.Helper()
	r := &RoamingLaptop{Laptop: NewLaptop(t)}
	c, err := cluster.Default()
	require.NoError(t, err)
	require.NoError(t, r.Do(func() (err error) {
		r.API, err = badnet.Listen(context.Background(), "127.0.0.1:0", strings.TrimPrefix(c.Server(), "https://"))
		return err
	}))
	t.Cleanup(r.API.Close)
	r.KubeconfigPath, err = r.Kubeconfig("https://" + r.API.Addr())
	require.NoError(t, err)
	// This runs before the relay closes, which the laptop needs in order to end its session.
	t.Cleanup(func() { r.API.Stall(false); _, _ = r.Try("quit") })
	return r
}

// BlockUDP drops all datagrams between the laptop and the cluster, or lets them pass again.
func (r *RoamingLaptop) BlockUDP(blocked bool) {
	r.t.Helper()
	if !blocked {
		r.Exec("nft", "delete", "table", "inet", "blocked")
		return
	}
	r.Exec("nft", "add table inet blocked;"+
		"add chain inet blocked out { type filter hook output priority 0; };"+
		"add rule inet blocked out oifname eth0 meta l4proto udp drop;"+
		"add chain inet blocked in { type filter hook input priority 0; };"+
		"add rule inet blocked in iifname eth0 meta l4proto udp drop")
}

// TransportStatus is what `detour status` tells of the path to the cluster.
type TransportStatus struct {
	Transport, TransportAddress, TransportSinceUnix string
	TunnelUp                                        bool
}

// Status returns the current path.
func (r *RoamingLaptop) Status() (s TransportStatus) {
	r.t.Helper()
	require.NoError(r.t, json.Unmarshal([]byte(r.Detour("status", "-o", "json")), &s))
	return s
}

// WaitForTransport waits until a transport is the path.
func (r *RoamingLaptop) WaitForTransport(transport string) {
	r.t.Helper()
	Eventually(r.t, func() bool { return r.Status().Transport == transport }, "the path becomes %s", transport)
}

// Dial opens a connection to port 80 of an address in the cluster.
func (r *RoamingLaptop) Dial(address string) *bufio.ReadWriter {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), Patience(r.t))
	defer cancel()
	c, err := r.DialContext(ctx, "tcp", net.JoinHostPort(address, "80"))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = c.Close() })
	limited := &limitedReads{Conn: c, limit: Patience(r.t)}
	return bufio.NewReadWriter(bufio.NewReader(limited), bufio.NewWriter(c))
}

// limitedReads is a connection of which each Read has a limit.
type limitedReads struct {
	net.Conn
	limit time.Duration
}

func (l *limitedReads) Read(b []byte) (int, error) {
	_ = l.SetReadDeadline(time.Now().Add(l.limit))
	return l.Conn.Read(b)
}

// CanReach reports whether a new connection to the service target is answered within a second.
func (r *RoamingLaptop) CanReach(address string) bool {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
	defer cancel()
	c, err := r.DialContext(ctx, "tcp", net.JoinHostPort(address, "80"))
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, err = fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n")
	page, readErr := io.ReadAll(c)
	return err == nil && readErr == nil && bytes.Contains(page, []byte("a small answer"))
}

// requestPage requests a page on a connection that stays open and returns the body.
func requestPage(t *testing.T, c *bufio.ReadWriter, path string) io.ReadCloser {
	t.Helper()
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: target\r\n\r\n", path)
	require.NoError(t, err)
	require.NoError(t, c.Flush())
	response, err := http.ReadResponse(c.Reader, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	return response.Body
}

// RequireTargetAnswers requires that the service target answers a request on a connection that
// stays open.
func RequireTargetAnswers(t *testing.T, c *bufio.ReadWriter) {
	t.Helper()
	body := requestPage(t, c, "/")
	defer body.Close()
	page, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Contains(t, string(page), "a small answer")
}

// Download is a download without an end, of some ten megabytes a second, whose bytes are compared
// with those that were sent.
type Download struct {
	received atomic.Int64
	ended    chan error
}

// StartDownload starts a download from the service target.
func (r *RoamingLaptop) StartDownload(address string) *Download {
	r.t.Helper()
	body := requestPage(r.t, r.Dial(address), "/noise/"+strconv.FormatInt(1<<50, 10))
	d := &Download{ended: make(chan error, 1)}
	ctx := r.t.Context()
	go func() { // ends with the test, whose end closes the connection
		noise := rand.NewChaCha8([32]byte{})
		got, want := make([]byte, 128<<10), make([]byte, 128<<10)
		for ctx.Err() == nil {
			n, err := io.ReadFull(body, got)
			_, _ = noise.Read(want[:n])
			d.received.Add(int64(n))
			if err == nil && !bytes.Equal(got, want) {
				err = errors.New("the bytes received are not those sent")
			}
			if err != nil {
				d.ended <- fmt.Errorf("after %d bytes: %w", d.received.Load(), err)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return d
}

// WaitForProgress waits until more bytes have arrived than can have been in flight.
func (d *Download) WaitForProgress(t *testing.T) {
	t.Helper()
	before := d.received.Load()
	Eventually(t, func() bool {
		select {
		case err := <-d.ended:
			require.NoError(t, err, "the download ended")
		default:
		}
		return d.received.Load() > before+10<<20
	}, "the download goes on")
}

// Outage is how long no packet passes in tests of a lost network. DETOUR_OUTAGE makes it longer
// than every run has time for.
func Outage(t *testing.T) time.Duration {
	if text := os.Getenv("DETOUR_OUTAGE"); text != "" {
		d, err := time.ParseDuration(text)
		require.NoError(t, err)
		return d
	}
	return 8 * time.Second // longer than the traffic-manager takes to count a laptop as gone
}
