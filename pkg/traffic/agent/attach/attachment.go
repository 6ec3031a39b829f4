// Package attach redirects the ports of a pod to an agent in an ephemeral container. Such an agent
// redirects its ports itself, while something is in force there, and ends when nobody needs it,
// because nobody else ends it. Start with Attachment.
package attach

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"

	"github.com/detour-dev/detour/pkg/traffic/redirect"
)

// Attachment is the redirection of one agent's ports.
type Attachment struct {
	log    *slog.Logger
	ports  map[uint16]uint16 // the app's to the agent's
	failed chan error        // has the error of a redirection that could not be changed

	// mu guards the fields below.
	mu    sync.Mutex
	hold  *redirect.Hold
	now   map[uint16]uint16 // what is redirected
	ended bool              // nothing is redirected any more
}

// New returns an Attachment for ports, the app's to the agent's. It redirects nothing yet. The
// caller closes it.
func New(ports map[uint16]uint16, log *slog.Logger) (*Attachment, error) {
	a := &Attachment{log: log, ports: ports, failed: make(chan error, 1), hold: redirect.NewHold(rand.Text())}
	return a, a.hold.Open()
}

// Follow redirects those of the app's ports for which wanted returns true, and no others.
func (a *Attachment) Follow(wanted func(port uint16) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	want := map[uint16]uint16{}
	for app, own := range a.ports {
		if wanted(app) {
			want[app] = own
		}
	}
	if a.ended || maps.Equal(want, a.now) {
		return
	}
	a.now = want
	a.setLocked(want)
}

// Withdraw redirects nothing any more, because the agent ends. If its pod ends, all containers were
// told so at the same time, and the app gets new connections for as long as it accepts any.
// Withdraw does nothing on a nil Attachment.
func (a *Attachment) Withdraw() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended {
		a.ended = true
		a.setLocked(nil)
	}
}

// Failed has an element when the redirection could not be changed. The agent ends then, which takes
// the redirection away.
func (a *Attachment) Failed() <-chan error { return a.failed }

func (a *Attachment) setLocked(ports map[uint16]uint16) {
	if err := a.hold.Set(ports); err != nil {
		select {
		case a.failed <- err:
		default:
		}
	}
}

// Close gives the ports back to the app.
func (a *Attachment) Close() {
	if err := a.hold.Close(); err != nil {
		a.log.Error("the redirection could not be removed", "err", err)
	}
}

// Connected reports whether a client is connected to one of the agent's ports. It returns true if
// that cannot be known.
func (a *Attachment) Connected() bool { return connected(a.ports) }

func connected(ports map[uint16]uint16) bool {
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

// connectedIn reads the kernel's table of sockets, which has the columns number, local address,
// remote address, state, ... It reports whether a connection belongs to one of the agent's ports,
// which are in hexadecimal digits.
func connectedIn(lines *bufio.Scanner, own map[string]bool) bool {
	const listening, timeWait = "0A", "06"
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			continue
		}
		if _, port, ok := strings.Cut(f[1], ":"); ok && own[port] && f[3] != listening && f[3] != timeWait {
			return true
		}
	}
	return lines.Err() != nil
}
