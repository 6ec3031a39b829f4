package intercept

import detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"

// whileLaptopGone returns the phase of an intercept whose laptop does not respond, and whether
// agents follow the intercept meanwhile. They do if the app must not answer; but an intercept that
// never began does not begin like that.
func whileLaptopGone(
	phase detour.InterceptPhase, errorOnFailure, replaced bool,
) (_ detour.InterceptPhase, active bool, message string) {
	wasActive := phase == detour.PhaseActive || phase == detour.PhaseLaptopGone
	switch {
	case replaced:
		return detour.PhaseLaptopGone, true, "the laptop does not respond: " +
			"nobody does the replaced container's work until the laptop is back or its session is deleted"
	case errorOnFailure && !wasActive:
		return detour.PhasePending, false, "the laptop does not respond: the intercept begins when it is back"
	case errorOnFailure:
		return detour.PhaseLaptopGone, true, "the laptop does not respond: its traffic gets errors until it is back"
	}
	return detour.PhaseLaptopGone, false,
		"the laptop does not respond: the cluster's pods answer until it is back"
}
