package intercept

import (
	"testing"

	"github.com/stretchr/testify/require"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

// Where the app must not answer, agents keep following an intercept of a laptop that does not
// respond, if they followed it before. The answer is the same however often it is asked for.
func TestWhileLaptopGone(t *testing.T) {
	for name, c := range map[string]struct {
		phase           detour.InterceptPhase
		fails, replaced bool
		want            detour.InterceptPhase
		active          bool
	}{
		"the app answers": {phase: detour.PhaseActive, want: detour.PhaseLaptopGone},
		"errors":          {phase: detour.PhaseActive, fails: true, want: detour.PhaseLaptopGone, active: true},
		"errors, during the first rollout": {
			phase: detour.PhasePending, fails: true, want: detour.PhasePending,
		},
		"errors, before anything has happened": {fails: true, want: detour.PhasePending},
		"replaced": {
			phase: detour.PhaseActive, fails: true, replaced: true, want: detour.PhaseLaptopGone, active: true,
		},
		"replaced, during the first rollout": {
			phase: detour.PhasePending, fails: true, replaced: true, want: detour.PhaseLaptopGone, active: true,
		},
		"the app answers, during the first rollout": {phase: detour.PhasePending, want: detour.PhaseLaptopGone},
	} {
		t.Run(name, func(t *testing.T) {
			phase := c.phase
			for range 3 {
				var active bool
				phase, active, _ = whileLaptopGone(phase, c.fails, c.replaced)
				require.Equal(t, c.want, phase)
				require.Equal(t, c.active, active)
			}
		})
	}
}
