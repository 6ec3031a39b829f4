package daemon

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A session that is gone was deleted by the traffic-manager when the laptop was silent for as long as that waits, and else by a person.
func TestGivenUp(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		silent  time.Duration
		givenUp bool
	}{
		"the laptop was there":                 {silent: 4 * time.Second},
		"a short outage":                       {silent: 5 * time.Minute},
		"a sleep as long as the manager waits": {silent: 10 * time.Minute, givenUp: true},
		"a night":                              {silent: 9 * time.Hour, givenUp: true},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.givenUp, givenUp(now.Add(-c.silent), now, 10*time.Minute))
		})
	}
}
