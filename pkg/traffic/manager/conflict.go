package manager

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/route/spec"
)

// conflict lets the intercept of a port win that is in force, and else the oldest. Matches that are disjoint or ordered share it.
func (r *interceptReconciler) conflict(ctx context.Context, i *detour.Intercept) error {
	var list detour.InterceptList
	if err := r.List(ctx, &list, client.InNamespace(i.Namespace)); err != nil {
		return err
	}
	for _, other := range list.Items {
		if other.Spec.Mode == detour.ModeIngest {
			continue
		}
		if other.UID == i.UID || other.Spec.Suspend || other.Status.Phase == detour.PhaseRefused || other.Status.Workload == nil || !other.DeletionTimestamp.IsZero() {
			continue
		}
		if *other.Status.Workload != *i.Status.Workload || !precedes(&other, i) {
			continue
		}
		if err := clash(i, &other); err != nil {
			return err
		}
	}
	return nil
}

// precedes orders intercepts of the same port. The time of creation has a resolution of a second, and within that one may already
// be in force: then it holds the port.
func precedes(a, b *detour.Intercept) bool {
	inForce := func(i *detour.Intercept) bool {
		return i.Status.Phase == detour.PhaseActive || i.Status.Phase == detour.PhaseLaptopGone
	}
	if inForce(a) != inForce(b) {
		return inForce(a)
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.UID < b.UID
}

// clash says why an intercept cannot be had beside another one of the same workload, whose it is and since when.
func clash(i, other *detour.Intercept) error {
	taken := func(format string, args ...any) error { return refuse(detour.ReasonPortTaken, format, args...) }
	theirs := holderOf(i, other)
	samePort := other.Status.ContainerPort == i.Status.ContainerPort
	if a, b := i.Spec.TLS, other.Spec.TLS; a != nil && b != nil && a.Secret != b.Secret && samePort {
		return taken("port %d is looked into with Secret %s for %s: name the same one", i.Status.ContainerPort, b.Secret, theirs)
	}
	if i.Spec.Mode == detour.ModeWiretap || other.Spec.Mode == detour.ModeWiretap {
		return nil // copies take nothing from anybody
	}
	workload := strings.ToLower(i.Status.Workload.Kind) + "/" + i.Status.Workload.Name
	if other.Spec.Session != i.Spec.Session {
		switch detour.ModeReplace {
		case other.Spec.Mode:
			return taken("%s is replaced by %s: %s", workload, theirs, theirs.toDo)
		case i.Spec.Mode:
			return taken("%s is intercepted by %s, whose other requests would find no app: %s", workload, theirs, theirs.toDo)
		}
	}
	if i.Status.ContainerPort == 0 && other.Status.Container != i.Status.Container {
		return nil
	}
	if !samePort || other.Status.Protocol != i.Status.Protocol || !route.Ambiguous(spec.FromAPI(other.Spec.Match), spec.FromAPI(i.Spec.Match)) {
		return nil
	}
	switch {
	case other.Spec.Match != nil:
		return taken("requests could match both this and those of %s (%s): add a condition, so that one is more specific, or %s", theirs, other.Status.Requests, theirs.toDo)
	case i.Status.ContainerPort == 0:
		return taken("%s is replaced by %s: %s", workload, theirs, theirs.toDo)
	case theirs.own:
		return taken("port %d of %s is intercepted by %s: %s", i.Status.ContainerPort, workload, theirs, theirs.toDo)
	}
	return taken("port %d of %s is intercepted by %s: %s, or take only your requests with --me or --header", i.Status.ContainerPort, workload, theirs, theirs.toDo)
}

// holder is whose an intercept is, for the one who is refused, and what to do about it.
type holder struct {
	text, toDo string
	own        bool
}

func (h holder) String() string { return h.text }

func holderOf(i, other *detour.Intercept) holder {
	since := other.CreationTimestamp.UTC().Format(time.DateTime + " MST")
	switch {
	case other.Spec.Session == i.Spec.Session:
		return holder{fmt.Sprintf("yourself since %s (intercept %s)", since, other.Name), "run `detour leave " + other.Name + "` first", true}
	case other.Status.Laptop == i.Status.Laptop: // without root a laptop has as many as its user likes
		return holder{fmt.Sprintf("another session of %s since %s (intercept %s)", other.Status.Laptop, since, other.Name), "leave it there", false}
	}
	return holder{fmt.Sprintf("%s since %s (intercept %s)", other.Status.Laptop, since, other.Name), "ask them to leave it", false}
}
