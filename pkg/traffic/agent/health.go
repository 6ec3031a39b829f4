package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/traffic/keeper"
)

// readyAfter is when an agent is ready that has no configuration yet: the app must not wait longer
// for the manager.
const readyAfter = 5 * time.Second

// serveHealth answers the kubelet's probes, and the preStop hook of this pod, until ctx ends.
func (a *agent) serveHealth(ctx context.Context) error {
	listener, err := keeper.Listen(agentconfig.HealthPort)
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", a.serveReady)
	mux.HandleFunc("POST "+podEndsPath, a.servePodEnds)
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: mux}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health: %w", err)
	}
	return nil
}

// serveReady keeps a new pod out of its Service until the agent knows the intercepts in force: the
// pod's first request may be somebody's.
func (a *agent) serveReady(w http.ResponseWriter, _ *http.Request) {
	if !a.manager.configured.Load() && time.Since(a.manager.started) < readyAfter {
		http.Error(w, "the traffic-manager has not sent the intercepts yet", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}
