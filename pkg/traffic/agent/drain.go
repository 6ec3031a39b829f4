package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// An agent ends in two steps. When its pod begins to end, the kubelet runs the preStop hook (PodEnds): from then on every answer asks
// its client to open another connection. When the other containers have ended, the agent gets SIGTERM: it finishes the requests that
// are in progress, closes idle connections and accepts no new ones.

const (
	// endTimeout is how long requests may go on when the agent has to end.
	endTimeout = 10 * time.Second
	// quietAfter is how long neither side may have spoken before a connection counts as idle, where the agent does not know the
	// protocol.
	quietAfter  = time.Second
	podEndsPath = "/pod-ends"
)

// errDraining is the error of a connection that is closed while it waits for a request, because the agent ends.
var errDraining = errors.New("the agent ends")

// PodEnds tells the agent of this pod that the pod ends. The preStop hook runs it.
func PodEnds(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	url := fmt.Sprintf("http://127.0.0.1:%d%s", agentconfig.HealthPort, podEndsPath)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, http.NoBody)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("tell the agent that its pod ends: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("tell the agent that its pod ends: %s", answer.Status)
	}
	return nil
}

// servePodEnds serves the preStop hook, and nobody outside this pod.
func (a *agent) servePodEnds(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		http.Error(w, "only the pod itself may report its end", http.StatusForbidden)
		return
	}
	a.podEnds()
}

// podEnds asks all clients to open another connection from now on: HTTP/2 at once, HTTP/1 with its next answer.
func (a *agent) podEnds() {
	a.podEnding.Store(true)
	a.review()
}

// review makes all HTTP/2 connections check whether their client has to open another one. Each has a goroutine, because a client
// that reads nothing must not hold up the others.
func (a *agent) review() {
	a.framed.Range(func(c, _ any) bool { a.conns.Go(c.(interface{ review() }).review); return true })
}

// idle ends the wait for a request when the agent ends.
type idle struct {
	conn net.Conn

	// mu guards the fields below.
	mu      sync.Mutex
	waiting bool
	ended   bool
}

// endWith makes the end of ctx end the waits of a connection. The result forgets that.
func (i *idle) endWith(ctx context.Context, c net.Conn) (stop func() bool) {
	i.conn = c
	return context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.ended = true
		if i.waiting {
			_ = c.SetReadDeadline(time.Now())
		}
	})
}

// set notes whether the connection waits for a request. After the end a wait is over at once.
func (i *idle) set(waiting bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting = waiting
	switch {
	case !i.ended:
	case waiting:
		_ = i.conn.SetReadDeadline(time.Now())
	default:
		_ = i.conn.SetReadDeadline(time.Time{})
	}
}

// frameWriter writes HTTP/2 frames to a client, and between two of them the request to open another connection.
type frameWriter struct {
	// mu guards the fields below, and orders the writes.
	mu     sync.Mutex
	frames sniff.Frames
	due    bool // the client is to be asked
	asked  bool
}

func (f *frameWriter) write(c net.Conn, b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := f.frames.Feed(b)
	if f.due && !f.asked && end >= 0 {
		f.asked = true
		if _, err := c.Write(b[:end]); err != nil {
			return err
		}
		if _, err := c.Write(sniff.Goaway); err != nil {
			return err
		}
		b = b[end:]
	}
	if len(b) == 0 {
		return nil
	}
	_, err := c.Write(b)
	return err
}

// ask asks the client to open another connection for its next requests, now or when the present frame ends.
func (f *frameWriter) ask(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due = true
	if f.asked || !f.frames.Between() {
		return
	}
	f.asked = true
	_, _ = c.Write(sniff.Goaway)
}

// endWhenQuiet ends the connection once the upstream was the last to speak and then nobody speaks for a while.
func (c *rawConn) endWhenQuiet(ctx context.Context) {
	if awaitQuiet(ctx, func() (uint64, bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.activity.Load(), c.answered && c.protocol != sniff.HTTP2
	}) {
		_ = c.client.SetReadDeadline(time.Now())
	}
}

// awaitQuiet waits until a connection that may end was quiet for a while, and reports whether it was so before ctx ended. state
// returns how often the two sides have spoken, and whether the connection may end now.
func awaitQuiet(ctx context.Context, state func() (activity uint64, mayEnd bool)) bool {
	tick := time.NewTicker(quietAfter)
	defer tick.Stop()
	for before, _ := state(); ; {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		now, mayEnd := state()
		if mayEnd && now == before {
			return true
		}
		before = now
	}
}
