package session

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

const (
	// lastSeenStep is how old a session's lastSeen may get, so that the status is not written for
	// every packet.
	lastSeenStep = 30 * time.Second
	// blockedRecheck is when a session that waits for its key or for an address is looked at again:
	// no event announces that either became free.
	blockedRecheck = 10 * time.Second
	// ttlSlack makes sure that the session has expired when it is looked at for that.
	ttlSlack = time.Millisecond
)

// decision is what is to happen to a session.
type decision struct {
	// delete is set if the laptop has been silent for too long; silent is for how long.
	delete bool
	silent time.Duration
	// assign is set if the session needs addresses before anything else can be decided.
	assign bool
	// status is what the session's status is to be.
	status detour.SessionStatus
	// requeue is when the session is to be reconciled again even if nothing happens; 0 is never.
	requeue time.Duration
}

// decide returns what is to happen to a session. It depends on its arguments only and changes none.
func decide(f facts, now time.Time) decision {
	d := decision{status: *f.session.Status.DeepCopy()}
	if f.keyErr != nil {
		d.notReady(f, now, detour.ReasonBadKey,
			"the session's public key is not a WireGuard key: connect again")
		return d
	}
	d.silent = silence(f, now)
	switch {
	case d.silent > f.manager.ttl:
		d.delete = true
		return d
	case f.keyOwner == nil && !f.addressed && !f.assigned:
		d.assign = true
		return d
	case f.keyOwner != nil:
		d.requeue = blockedRecheck
		d.status.Addresses, d.status.Connected = nil, false
		d.notReady(f, now, detour.ReasonKeyTaken, fmt.Sprintf(
			"session %s in namespace %s owns this public key: create a session with a key of its own, "+
				"as `detour connect` does", f.keyOwner.Name, f.keyOwner.Namespace))
		return d
	case len(d.status.Addresses) == 0:
		d.requeue = blockedRecheck
		d.notReady(f, now, detour.ReasonNoAddressLeft,
			"all laptop addresses are in use: widen sessionCIDR in the chart, or delete unused sessions")
		return d
	}
	d.requeue = min(lastSeenStep, f.manager.ttl-d.silent+ttlSlack)
	d.status.Subnets, d.status.NodeAddresses = f.cluster.subnets, f.cluster.nodeAddresses
	d.status.DNS, d.status.UDPEndpoints = f.cluster.dns, f.cluster.udpEndpoints
	d.status.ManagerPod, d.status.ManagerPublicKey = f.manager.pod, f.manager.publicKey
	d.status.ManagerVersion = f.manager.version
	d.status.GivenUpAfter = metav1.Duration{Duration: f.manager.ttl}
	d.status.Connected = f.connected
	d.decideReady(f, now)
	return d
}

// silence returns how long ago the last packet of a laptop arrived. A new manager received none
// before it started, so it counts from then.
func silence(f facts, now time.Time) time.Duration {
	last := f.session.CreationTimestamp.Time
	if f.session.Status.LastSeen != nil {
		last = f.session.Status.LastSeen.Time
	}
	if f.lastReceived.After(last) {
		last = f.lastReceived
	}
	return min(now.Sub(last), now.Sub(f.manager.started))
}

// decideReady decides the Ready condition of a session that has addresses.
func (d *decision) decideReady(f facts, now time.Time) {
	lastSeen := f.session.Status.LastSeen
	switch {
	case !compatible(f.session.Spec.ClientVersion, f.manager.version):
		d.notReady(f, now, detour.ReasonVersionMismatch, fmt.Sprintf(
			"detour %s on the laptop does not work with traffic-manager %s: "+
				"install that version on the laptop, or run `detour install` again",
			f.session.Spec.ClientVersion, f.manager.version))
	case f.connected:
		due := lastSeen == nil || f.lastReceived.Sub(lastSeen.Time) > lastSeenStep
		if due || !f.session.Status.Connected {
			d.status.LastSeen = &metav1.Time{Time: f.lastReceived}
		}
		d.condition(f, now, metav1.ConditionTrue, detour.ReasonConnected, "the laptop's tunnel is up")
	case f.lastReceived.IsZero() && lastSeen == nil:
		d.notReady(f, now, detour.ReasonAddressAssigned, "waiting for the laptop to open its tunnel")
	default:
		d.notReady(f, now, detour.ReasonLaptopGone,
			"the laptop does not respond: its traffic goes to the cluster's pods")
	}
}

func (d *decision) notReady(f facts, now time.Time, reason, message string) {
	d.condition(f, now, metav1.ConditionFalse, reason, message)
}

func (d *decision) condition(f facts, now time.Time, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&d.status.Conditions, metav1.Condition{
		Type: detour.ConditionReady, Status: status, Reason: reason, Message: message,
		ObservedGeneration: f.session.Generation, LastTransitionTime: metav1.NewTime(now),
	})
}

// compatible reports whether two versions work together: below v1 the minor version must be the
// same, from v1 on the major version.
func compatible(a, b string) bool {
	series := func(v string) string {
		parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
		if len(parts) > 1 && parts[0] == "0" {
			return "0." + parts[1]
		}
		return parts[0]
	}
	return series(a) == series(b)
}
