package manager

import (
	"testing"

	"github.com/stretchr/testify/require"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

// What must not be answered by the app is not while its laptop is silent, if it was the laptop's already. However often that is looked at.
func TestGone(t *testing.T) {
	for name, c := range map[string]struct {
		phase           detour.InterceptPhase
		fails, replaced bool
		then            detour.InterceptPhase
		inForce         bool
	}{
		"the app answers":                           {detour.PhaseActive, false, false, detour.PhaseLaptopGone, false},
		"errors":                                    {detour.PhaseActive, true, false, detour.PhaseLaptopGone, true},
		"errors, in a rollout that was not done":    {detour.PhasePending, true, false, detour.PhasePending, false},
		"errors, when nothing has happened yet":     {"", true, false, detour.PhasePending, false},
		"replaced":                                  {detour.PhaseActive, true, true, detour.PhaseLaptopGone, true},
		"replaced, in a rollout that was not done":  {detour.PhasePending, true, true, detour.PhaseLaptopGone, true},
		"the app answers, in a rollout of the same": {detour.PhasePending, false, false, detour.PhaseLaptopGone, false},
	} {
		t.Run(name, func(t *testing.T) {
			phase := c.phase
			for range 3 {
				var inForce bool
				phase, inForce, _ = gone(phase, c.fails, c.replaced)
				require.Equal(t, c.then, phase)
				require.Equal(t, c.inForce, inForce)
			}
		})
	}
}
