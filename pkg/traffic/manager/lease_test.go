package manager

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// heldBy is a lock that somebody has.
type heldBy struct {
	resourcelock.Interface
	holder string
}

func (h heldBy) Identity() string { return "me" }

func (h heldBy) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r := &resourcelock.LeaderElectionRecord{HolderIdentity: h.holder, LeaderTransitions: 3}
	raw, err := json.Marshal(r)
	return r, raw, err
}

// A lease is free when its holder's pod is gone for so long that its token is worth nothing, and not before; nor when that cannot be told.
func TestPodLock(t *testing.T) {
	absent := func(context.Context, string) (bool, error) { return false, nil }
	flickering := 0
	for name, c := range map[string]struct {
		holder string
		exists func(context.Context, string) (bool, error)
		after  time.Duration
		free   bool
	}{
		"gone for long":     {"old", absent, podlessAfter, true},
		"gone":              {"old", absent, podlessAfter - time.Second, false},
		"there":             {"old", func(context.Context, string) (bool, error) { return true, nil }, 2 * podlessAfter, false},
		"nobody can tell":   {"old", func(context.Context, string) (bool, error) { return false, errors.New("no answer") }, 2 * podlessAfter, false},
		"its own":           {"me", absent, 2 * podlessAfter, false},
		"gone now and then": {"old", func(context.Context, string) (bool, error) { flickering++; return flickering%10 == 0, nil }, 2 * podlessAfter, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &podLock{Interface: heldBy{holder: c.holder}, log: slog.New(slog.DiscardHandler), exists: c.exists}
				for end := time.Now().Add(c.after); ; time.Sleep(leaseRetry) {
					record, raw, err := l.Get(t.Context())
					require.NoError(t, err)
					var encoded resourcelock.LeaderElectionRecord
					require.NoError(t, json.Unmarshal(raw, &encoded))
					assert.Equal(t, *record, encoded)
					assert.Equal(t, 3, record.LeaderTransitions)
					if !time.Now().Before(end) {
						assert.Equal(t, c.free, record.HolderIdentity == "")
						return
					}
					require.Equal(t, c.holder, record.HolderIdentity)
				}
			})
		})
	}
}
