package suite

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// watched asks as a developer and as nobody until stop is called, and notes who answered when.
type watched struct {
	stop    context.CancelFunc
	done    sync.WaitGroup
	mu      sync.Mutex
	answers []answered
}

type answered struct {
	asked time.Time
	who   string // whose mark the request had
	got   string // which edition answered, or the error
	err   bool
}

func watch(marks ...string) *watched {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{stop: cancel}
	for _, who := range marks {
		for range 4 {
			w.done.Go(func() {
				client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
				defer client.CloseIdleConnections()
				for ctx.Err() == nil {
					a := answered{asked: time.Now(), who: who}
					got, err := askAs(client, who)
					a.got, a.err = got, err != nil
					if err != nil {
						a.got = err.Error()
					}
					w.mu.Lock()
					w.answers = append(w.answers, a)
					w.mu.Unlock()
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
	}
	return w
}

// check ends the watch. Requests without a mark never fail; those of alice may fail when they were under way on her laptop at the fault,
// are answered by her laptop or the cluster, and only by the cluster from settled on.
func (w *watched) check(t *testing.T, fault time.Time, settled time.Duration) {
	t.Helper()
	w.stop()
	w.done.Wait()
	var wrong []string
	for _, a := range w.answers {
		late := a.asked.Sub(fault)
		switch {
		case a.who == "" && a.got == "cluster":
		case a.who == "" || (a.err && late > 0):
			wrong = append(wrong, fmt.Sprintf("%q, %s after the fault: %s", a.who, late, a.got))
		case !a.err && late > settled && a.got != "cluster":
			wrong = append(wrong, fmt.Sprintf("%q, %s after the fault: still %s", a.who, late, a.got))
		}
	}
	require.Empty(t, wrong, "of %d requests", len(w.answers))
}

// Whatever becomes of alice's laptop: her requests are the cluster's again within a moment, and nobody else's notice.
func TestFailOpen(t *testing.T) {
	alice := newDeveloper(t, 0, "alice")
	connected(t)
	intercept := func() {
		if out, err := alice.try("status"); err == nil && out == "not connected" {
			alice.detour("connect", "-n", "shop")
		}
		alice.detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
		got, err := askAs(http.DefaultClient, "alice")
		require.NoError(t, err)
		require.Equal(t, "alice", got)
	}
	back := func() bool { got, err := askAs(http.DefaultClient, "alice"); return err == nil && got == "alice" }

	t.Run("the daemon is stopped", func(t *testing.T) {
		intercept()
		pid := alice.daemonPID()
		w := watch("alice", "")
		time.Sleep(time.Second)
		fault := time.Now()
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		time.Sleep(12 * time.Second)
		w.check(t, fault, 2*time.Second)
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
		require.Eventually(t, back, 20*time.Second, 100*time.Millisecond, "taken up again")
		alice.detour("leave", "catalog")
	})

	t.Run("the local process exits", func(t *testing.T) {
		intercept()
		w := watch("alice", "")
		time.Sleep(time.Second)
		fault := time.Now()
		require.NoError(t, alice.service.Process.Kill())
		time.Sleep(3 * time.Second)
		w.check(t, fault, 500*time.Millisecond)
		alice.serve("alice")
		require.Eventually(t, back, 20*time.Second, 100*time.Millisecond, "taken up again")
		alice.detour("leave", "catalog")
	})

	t.Run("the network is cut", func(t *testing.T) {
		intercept()
		w := watch("alice", "")
		time.Sleep(time.Second)
		fault := time.Now()
		out, err := alice.Command(t.Context(), "ip", "link", "set", "eth0", "down").CombinedOutput()
		require.NoError(t, err, string(out))
		time.Sleep(12 * time.Second)
		w.check(t, fault, 2*time.Second)
		// It can no longer take its session back, and its mark would be held until the session's time is over.
		kubectl(t, "-n", "shop", "delete", "sessions", "--all")
		require.Eventually(t, func() bool { return kubectl(t, "-n", "shop", "get", "intercepts", "-o", "name") == "" }, 30*time.Second, 200*time.Millisecond)
	})
}
