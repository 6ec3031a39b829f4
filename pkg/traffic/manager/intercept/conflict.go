package intercept

import (
	"fmt"
	"time"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/route/spec"
)

// conflict refuses an intercept that cannot exist beside one that comes before it. Of two
// intercepts of one port the active one wins, and otherwise the older one. Intercepts whose matches
// are disjoint or ordered share the port.
func conflict(i *detour.Intercept, others []detour.Intercept) error {
	for n := range others {
		other := &others[n]
		switch {
		case other.UID == i.UID, other.Spec.Mode == detour.ModeIngest, other.Spec.Suspend,
			other.Status.Phase == detour.PhaseRefused, other.Status.Workload == nil, !other.DeletionTimestamp.IsZero():
			continue
		case *other.Status.Workload != *i.Status.Workload, !precedes(other, i):
			continue
		}
		if err := clash(i, other); err != nil {
			return err
		}
	}
	return nil
}

// precedes reports whether intercept a has the port before intercept b. Creation times are in whole
// seconds, and within a second one of the two may become active: then it has the port.
func precedes(a, b *detour.Intercept) bool {
	active := func(i *detour.Intercept) bool {
		return i.Status.Phase == detour.PhaseActive || i.Status.Phase == detour.PhaseLaptopGone
	}
	if active(a) != active(b) {
		return active(a)
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.UID < b.UID
}

// clash refuses an intercept that cannot exist beside another one of the same workload. The message
// says whose the other one is and since when.
func clash(i, other *detour.Intercept) error {
	taken := func(format string, args ...any) error { return refuse(detour.ReasonPortTaken, format, args...) }
	owner := ownerOf(i, other)
	samePort := other.Status.ContainerPort == i.Status.ContainerPort
	if samePort && differentSecrets(i.Spec.TLS, other.Spec.TLS) {
		return taken("the agent decrypts port %d with Secret %s for %s: use the same Secret",
			i.Status.ContainerPort, other.Spec.TLS.Secret, owner)
	}
	if i.Spec.Mode == detour.ModeWiretap || other.Spec.Mode == detour.ModeWiretap {
		return nil // copies take nothing from anybody
	}
	if err := replacement(i, other, owner, taken); err != nil {
		return err
	}
	if i.Status.ContainerPort == 0 && other.Status.Container != i.Status.Container {
		return nil
	}
	ambiguous := route.Ambiguous(spec.FromAPI(other.Spec.Match), spec.FromAPI(i.Spec.Match))
	if !samePort || other.Status.Protocol != i.Status.Protocol || !ambiguous {
		return nil
	}
	workload := shortName(i.Status.Workload)
	switch {
	case other.Spec.Match != nil:
		return taken("a request could match both this intercept and the one by %s (%s): "+
			"add a condition, so that one is more specific, or %s", owner, other.Status.Requests, owner.advice)
	case i.Status.ContainerPort == 0:
		return taken("%s is replaced by %s: %s", workload, owner, owner.advice)
	case owner.you:
		return taken("port %d of %s is intercepted by %s: %s", i.Status.ContainerPort, workload, owner, owner.advice)
	}
	return taken("port %d of %s is intercepted by %s: %s, or take only your requests with --me or --header",
		i.Status.ContainerPort, workload, owner, owner.advice)
}

func differentSecrets(a, b *detour.TLS) bool { return a != nil && b != nil && a.Secret != b.Secret }

// replacement refuses an intercept if it or the other one replaces the workload of several
// sessions.
func replacement(i, other *detour.Intercept, owner owner, taken func(string, ...any) error) error {
	workload := shortName(i.Status.Workload)
	switch {
	case other.Spec.Session == i.Spec.Session:
		return nil
	case other.Spec.Mode == detour.ModeReplace:
		return taken("%s is replaced by %s: %s", workload, owner, owner.advice)
	case i.Spec.Mode == detour.ModeReplace:
		return taken("%s is intercepted by %s, and their other requests would reach no app: %s",
			workload, owner, owner.advice)
	}
	return nil
}

// owner says whose an intercept is, and what the refused user can do about it.
type owner struct {
	name, advice string
	you          bool
}

func (o owner) String() string { return o.name }

func ownerOf(i, other *detour.Intercept) owner {
	since := fmt.Sprintf("since %s (intercept %s)",
		other.CreationTimestamp.UTC().Format(time.DateTime+" MST"), other.Name)
	switch {
	case other.Spec.Session == i.Spec.Session:
		return owner{name: "you " + since, advice: "run `detour leave " + other.Name + "` first", you: true}
	case other.Status.Laptop == i.Status.Laptop: // without root a user may have several sessions on a laptop
		return owner{
			name:   "another session of " + other.Status.Laptop + " " + since,
			advice: "run `detour leave` in that session",
		}
	}
	return owner{name: other.Status.Laptop + " " + since, advice: "ask them to leave it"}
}
