package kit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// LaptopPage is the page of a process on the laptop.
const LaptopPage = `{"edition":"laptop"}`

// Listen listens on a port of 127.0.0.1 until the test ends, and returns the port. Port "0" stands
// for any free port. It fails the test when another process has the port.
func Listen(t *testing.T, port string) (net.Listener, string) {
	t.Helper()
	return listenOn(t, "127.0.0.1", port)
}

func listenOn(t *testing.T, host, port string) (net.Listener, string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	require.NoError(t, err, "this test needs port %s of %s", port, host)
	t.Cleanup(func() { _ = l.Close() })
	_, port, err = net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return l, port
}

// Serve serves HTTP on a port of 127.0.0.1 until the test ends, and returns the port. Port "0"
// stands for any free port.
func Serve(t *testing.T, port string, handler http.HandlerFunc) string {
	t.Helper()
	l, port := Listen(t, port)
	serveOn(t, l, handler)
	return port
}

func serveOn(t *testing.T, l net.Listener, handler http.HandlerFunc) {
	t.Helper()
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: handler}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { _ = s.Close(); serving.Wait() })
}

// ServePage serves LaptopPage on a free port of 127.0.0.1 and returns the port.
func ServePage(t *testing.T) (port string) {
	t.Helper()
	return ServePageOn(t, "0")
}

// ServePageOn serves LaptopPage on a certain port of 127.0.0.1.
func ServePageOn(t *testing.T, port string) string {
	t.Helper()
	return Serve(t, port, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, LaptopPage) })
}

// ServeText serves a text on a free port of an address of this machine, and returns address and
// port.
func ServeText(t *testing.T, address, text string) string {
	t.Helper()
	l, port := listenOn(t, address, "0")
	serveOn(t, l, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
	return net.JoinHostPort(address, port)
}

// ServeChecksum takes bytes on a port of 127.0.0.1 and answers with their checksum when the peer
// has sent all.
func ServeChecksum(t *testing.T, port string) {
	t.Helper()
	l, _ := Listen(t, port)
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				hash := sha256.New()
				if _, err := io.Copy(hash, c); err == nil {
					_, _ = fmt.Fprintf(c, "the laptop got %x", hash.Sum(nil))
				}
			})
		}
	})
}

// FreePorts returns the first of n successive ports of 127.0.0.1 on which nothing listens.
func FreePorts(t *testing.T, n int) (first int) {
	t.Helper()
	for range 100 {
		l, port := Listen(t, "0")
		all := []net.Listener{l}
		first, err := strconv.Atoi(port)
		require.NoError(t, err)
		for next := first + 1; err == nil && next < first+n; next++ {
			if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", next)); err == nil {
				all = append(all, l)
			}
		}
		for _, l := range all {
			_ = l.Close()
		}
		if err == nil {
			return first
		}
	}
	require.Fail(t, "this machine has no free ports", "%d successive ones", n)
	return 0
}

// StartEcho runs the echo service on this machine and returns a function that ends it.
func StartEcho(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, Path("bin", "echo"), args...)
	require.NoError(t, cmd.Start())
	stop = sync.OnceFunc(func() { cancel(); _ = cmd.Wait() })
	t.Cleanup(stop)
	return stop
}
