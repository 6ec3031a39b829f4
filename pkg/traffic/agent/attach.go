package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/redirect"
)

const (
	// unusedFor is how long an attached agent that nobody needs waits for the next intercept before it asks its clients to go elsewhere, and
	// ends when they have. A laptop that is away for longer gets a new one when it is back.
	unusedFor   = 10 * time.Second
	unusedCheck = time.Second
	// probeAgent begins the User-Agent of the kubelet's probes, over HTTP and gRPC.
	probeAgent = "kube-probe/"
)

// attachment is what an agent in an ephemeral container does itself: it redirects its ports while something is in force there, and ends
// when nobody needs it, because nobody else ends it.
type attachment struct {
	log    *slog.Logger
	ports  map[uint16]uint16 // the app's to the agent's
	probed map[uint16]bool   // the app's
	failed chan error        // what the kernel does not do any more

	mu   sync.Mutex
	hold *redirect.Hold
	now  map[uint16]uint16 // what is redirected
	over bool              // nothing is, any more
}

// attach makes ready to redirect to the listeners.
func (a *agent) attach(listeners map[uint16]*net.TCPListener) error {
	t := &attachment{log: a.log, ports: map[uint16]uint16{}, probed: map[uint16]bool{}, failed: make(chan error, 1)}
	for _, p := range a.config.Ports {
		t.ports[p.App] = uint16(listeners[p.App].Addr().(*net.TCPAddr).Port)
		t.probed[p.App] = p.Probed
	}
	t.hold = redirect.NewHold(rand.Text())
	a.attachment = t
	return t.hold.Open()
}

// follow redirects the ports of which something is in force.
func (t *attachment) follow(tables map[uint16]*table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	want := map[uint16]uint16{}
	for app, own := range t.ports {
		if tables[app] != nil {
			want[app] = own
		}
	}
	if t.over || maps.Equal(want, t.now) {
		return
	}
	t.now = want
	t.set(want)
}

// withdraw redirects nothing any more: the agent ends. Where its pod does, all containers were told so at once, and what is new is the
// app's as long as it takes any.
func (t *attachment) withdraw() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.over = true
		t.set(nil)
	}
}

// set is called with mu held. An agent that cannot change its redirection ends, which takes it away.
func (t *attachment) set(ports map[uint16]uint16) {
	if err := t.hold.Set(ports); err != nil {
		select {
		case t.failed <- err:
		default:
		}
	}
}

func (t *attachment) close() {
	if err := t.hold.Close(); err != nil {
		t.log.Error("giving the port back failed", "err", err)
	}
}

// probes says whether the kubelet asks the app on a port that is redirected.
func (t *attachment) probes(port uint16) bool { return t != nil && t.probed[port] }

// probe says whether a request is the kubelet's, which is for the app whoever intercepts: it cannot be sent to another port, as those of a
// new pod are.
func probe(r *route.Request) bool {
	for _, v := range r.Values("user-agent") {
		if strings.HasPrefix(v, probeAgent) {
			return true
		}
	}
	return false
}

// leaving says whether clients of a port of which nothing is in force are asked to go elsewhere: past this agent, which nobody needs.
func (a *agent) leaving() bool { return a.attachment != nil && a.podEnding.Load() }

// endUnused ends the agent when it has not been needed for a while, and is not by any client.
func (a *agent) endUnused(ctx context.Context) error {
	tick := time.NewTicker(unusedCheck)
	defer tick.Stop()
	for needed := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-a.attachment.failed:
			return err
		case <-tick.C:
		}
		switch {
		case len(*a.tables.Load()) > 0:
			needed = time.Now()
		case time.Since(needed) < unusedFor:
		case connections(a.attachment.ports):
			a.podEnds()
			a.tellChanged()
		default:
			a.attachment.withdraw()
			a.stop()
			return nil
		}
	}
}

// connections says whether a client is connected to one of the agent's ports. When it cannot be known, one is.
func connections(ports map[uint16]uint16) bool {
	own := map[string]bool{}
	for _, p := range ports {
		own[fmt.Sprintf("%04X", p)] = true
	}
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return true
		}
		open := connectedIn(bufio.NewScanner(f), own)
		_ = f.Close()
		if open {
			return true
		}
	}
	return false
}

// connectedIn reads the kernel's table of sockets: number, local address, remote address, state, ...
func connectedIn(lines *bufio.Scanner, own map[string]bool) bool {
	const listening, waiting = "0A", "06"
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			continue
		}
		if _, port, ok := strings.Cut(f[1], ":"); ok && own[port] && f[3] != listening && f[3] != waiting {
			return true
		}
	}
	return lines.Err() != nil
}
