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

// heldBy is a lock that a holder has.
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

// A lease is free once its holder's pod has been deleted for so long that the pod's token is
// worthless, and not before; nor if nobody can tell.
func TestPodLock(t *testing.T) {
	type exists = func(context.Context, string) (bool, error)
	answer := func(exists bool, err error) exists {
		return func(context.Context, string) (bool, error) { return exists, err }
	}
	absent := answer(false, nil)
	calls := 0
	sometimes := func(context.Context, string) (bool, error) { calls++; return calls%10 == 0, nil }
	for name, c := range map[string]struct {
		holder string
		exists exists
		after  time.Duration
		free   bool
	}{
		"deleted for long":     {holder: "old", exists: absent, after: podGoneAfter, free: true},
		"deleted a moment ago": {holder: "old", exists: absent, after: podGoneAfter - time.Second},
		"the pod exists":       {holder: "old", exists: answer(true, nil), after: 2 * podGoneAfter},
		"the API server says nothing": {
			holder: "old", exists: answer(false, errors.New("no answer")), after: 2 * podGoneAfter,
		},
		"the manager's own lease": {holder: "me", exists: absent, after: 2 * podGoneAfter},
		"deleted now and then":    {holder: "old", exists: sometimes, after: 2 * podGoneAfter},
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
