package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// An agent ends in two steps. When its pod begins to end the kubelet runs the preStop hook (PodEnds): from then on every answer asks its
// client to go elsewhere. When the other containers have ended it gets SIGTERM: what is under way is finished, connections on which nothing
// is are closed, and nothing new is taken.

const (
	// endTimeout is how long what is under way may go on when the agent has to end.
	endTimeout = 10 * time.Second
	// quietAfter is how long nobody may say anything before a connection counts as one on which nothing is under way, where the agent does
	// not know the protocol.
	quietAfter  = time.Second
	podEndsPath = "/pod-ends"
)

// PodEnds tells the agent of this pod that the pod ends.
func PodEnds(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d%s", agentconfig.HealthPort, podEndsPath), http.NoBody)
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

// servePodEnds is for this pod only.
func (a *agent) servePodEnds(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		http.Error(w, "only the pod itself may say that", http.StatusForbidden)
		return
	}
	a.podEnds()
}

// podEnds asks all clients to go elsewhere from now on: HTTP/2 at once, HTTP/1 with its next answer.
func (a *agent) podEnds() {
	a.podEnding.Store(true)
	a.review()
}

// review looks at the connections of HTTP/2, each for itself: a client that takes nothing must not hold up the others.
func (a *agent) review() {
	a.framed.Range(func(c, _ any) bool { a.conns.Go(c.(interface{ review() }).review); return true })
}

// idle knows whether a connection waits for a request, and ends the wait when the agent has to end.
type idle struct {
	mu            sync.Mutex
	conn          net.Conn
	waiting, over bool
}

// endWith says with what and which connection's wait ends. It returns how to forget that.
func (i *idle) endWith(ctx context.Context, c net.Conn) (forget func() bool) {
	i.conn = c
	return context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.over = true
		if i.waiting {
			_ = c.SetReadDeadline(time.Now())
		}
	})
}

// wait begins or ends waiting for a request.
func (i *idle) wait(waiting bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting = waiting
	switch {
	case !i.over:
	case waiting:
		_ = i.conn.SetReadDeadline(time.Now())
	default:
		_ = i.conn.SetReadDeadline(time.Time{})
	}
}

// frameWriter gives a client frames of HTTP/2, and between two of them asks it to open another connection where that is due.
type frameWriter struct {
	mu     sync.Mutex
	frames sniff.Frames
	due    bool
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

// ask asks the client to open another connection for what it asks next.
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

// endWhenQuiet ends a connection whose protocol the agent does not follow, once the upstream has spoken last and then nobody for a while.
func (c *connection) endWhenQuiet(ctx context.Context) {
	tick := time.NewTicker(quietAfter)
	defer tick.Stop()
	for seen := c.spoken.Load(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.mu.Lock()
		quiet := c.answered && c.proto != sniff.HTTP2 && c.spoken.Load() == seen
		c.mu.Unlock()
		if quiet {
			_ = c.client.SetReadDeadline(time.Now())
			return
		}
		seen = c.spoken.Load()
	}
}
