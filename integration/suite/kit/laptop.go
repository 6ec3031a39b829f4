package kit

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster/laptop"
	"github.com/detour-dev/detour/integration/subject"
)

// LocalPort is the port on which the process on a Laptop listens. Each laptop has its own network.
const LocalPort = "18080"

// laptops is how many laptops the suite may have at a time. The laptops of other test programs have
// higher numbers.
const laptops = 40

// freeLaptops has the numbers of the laptops that no test uses.
var freeLaptops = func() chan int {
	free := make(chan int, laptops)
	for i := range laptops {
		free <- i
	}
	return free
}()

// Laptop is a laptop with its own network, files and detour. It reaches the API server and the
// nodes, and nothing else.
type Laptop struct {
	*laptop.Laptop
	KubeconfigPath string
	// Catalog is the process that ServeCatalog started.
	Catalog *exec.Cmd

	t *testing.T
}

// NewLaptop makes a laptop on which nothing runs. When the test ends, the laptop quits and its
// session is gone, also when the test killed the daemon.
func NewLaptop(t *testing.T) *Laptop {
	t.Helper()
	i := <-freeLaptops
	t.Cleanup(func() { freeLaptops <- i })
	l, err := laptop.New(t.Context(), i)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	d := &Laptop{Laptop: l, t: t}
	d.KubeconfigPath, err = l.Kubeconfig("")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, _ = d.Try("quit")
		d.DeleteSessions()
	})
	return d
}

// NewCatalogLaptop makes a laptop that runs a catalog of its own, whose edition is the developer's
// name.
func NewCatalogLaptop(t *testing.T, developer string) *Laptop {
	t.Helper()
	l := NewLaptop(t)
	l.ServeCatalog(developer)
	return l
}

// DeleteSessions deletes the sessions that the laptop left because it vanished.
func (l *Laptop) DeleteSessions() {
	for _, session := range sessionsOf(l.Name()) {
		_, _ = Run("kubectl", "-n", session.Namespace, "delete", "session", session.Name, "--ignore-not-found")
	}
}

// Try runs detour on the laptop and returns what it printed.
func (l *Laptop) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	out, err := l.Command(ctx, "detour", append(args, "--kubeconfig", l.KubeconfigPath)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Detour runs detour on the laptop and requires that it succeeds.
func (l *Laptop) Detour(args ...string) string {
	l.t.Helper()
	out, err := l.Try(args...)
	require.NoError(l.t, err, out)
	return out
}

// DetourFails runs detour on the laptop and requires that it fails.
func (l *Laptop) DetourFails(args ...string) string {
	l.t.Helper()
	out, err := l.Try(args...)
	require.Error(l.t, err, out)
	return out
}

// Exec runs a program on the laptop, requires that it succeeds, and returns its standard output.
func (l *Laptop) Exec(args ...string) string {
	l.t.Helper()
	out, err := l.Command(l.t.Context(), args[0], args[1:]...).Output()
	require.NoError(l.t, err, "%v", args)
	return string(out)
}

// Intercept intercepts a service of the shop with the process on LocalPort.
func (l *Laptop) Intercept(service string, flags ...string) string {
	l.t.Helper()
	return l.Detour(append([]string{"intercept", service, "--port", LocalPort, "-n", "shop"}, flags...)...)
}

// Listen listens on LocalPort of the laptop.
func (l *Laptop) Listen() (listener net.Listener) {
	l.t.Helper()
	require.NoError(l.t, l.Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", LocalPort))
		return err
	}))
	return listener
}

// ServeSubject runs a subject on LocalPort that answers with the developer's name, until stop is
// called.
func (l *Laptop) ServeSubject(developer string) (stop func()) {
	l.t.Helper()
	listener := l.Listen()
	var serving sync.WaitGroup
	serving.Go(func() { _ = subject.Serve(listener, developer) })
	stop = func() { _ = listener.Close(); serving.Wait() }
	l.t.Cleanup(stop)
	return stop
}

// ServeCatalog runs a catalog on LocalPort whose edition is the developer's name.
func (l *Laptop) ServeCatalog(developer string) {
	l.t.Helper()
	catalog := l.Command(context.Background(), Path("bin", "catalog"))
	catalog.Env = append(catalog.Env, "EDITION="+developer, "LISTEN=127.0.0.1:"+LocalPort)
	require.NoError(l.t, catalog.Start())
	l.t.Cleanup(func() { _ = catalog.Process.Kill(); _ = catalog.Wait() })
	l.Catalog = catalog
}

// CountRequests serves both versions of HTTP on LocalPort and counts the requests that arrive
// whole.
func (l *Laptop) CountRequests() *atomic.Int64 {
	l.t.Helper()
	listener := l.Listen()
	var n atomic.Int64
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	handler := func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			n.Add(1)
		}
		w.WriteHeader(http.StatusTeapot)
	}
	s := &http.Server{Protocols: protocols, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(handler)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(listener) })
	l.t.Cleanup(func() { _ = s.Close(); serving.Wait() })
	return &n
}

// DaemonPID returns the process number of the laptop's daemon.
func (l *Laptop) DaemonPID() int {
	l.t.Helper()
	for _, pid := range l.daemons() {
		return pid
	}
	require.Fail(l.t, fmt.Sprintf("%s has no daemon", l.Name()))
	return 0
}

// daemons finds the laptop's daemons by the directory of their socket.
func (l *Laptop) daemons() (pids []int) {
	l.t.Helper()
	return processesWith(l.t, "DETOUR_RUN_DIR="+l.RunDir(), "detour", "daemon")
}
