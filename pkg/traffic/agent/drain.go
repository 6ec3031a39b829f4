package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

// An agent ends in two steps. When its pod begins to end, the kubelet runs the preStop hook
// (PodEnds): from then on every answer asks its client to open another connection. When the other
// containers have ended, the agent gets SIGTERM: it finishes the requests that are in progress,
// closes idle connections and accepts no new ones.

const (
	// endTimeout is how long requests may go on when the agent has to end.
	endTimeout  = 10 * time.Second
	podEndsPath = "/pod-ends"
)

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

// podEnds asks all clients to open another connection from now on: HTTP/2 at once, HTTP/1 with its
// next answer.
func (a *agent) podEnds() {
	a.life.podEnding.Store(true)
	a.review()
}
