package session

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

const ttl = 10 * time.Minute

// readyFacts are those of a session whose laptop is connected and was last recorded 10 s ago.
func readyFacts() facts {
	return facts{
		session: &detour.Session{
			ObjectMeta: metav1.ObjectMeta{
				Name: "alice", Generation: 1, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)),
			},
			Spec: detour.SessionSpec{ClientVersion: "v0.1.0"},
			Status: detour.SessionStatus{
				Addresses: []string{"198.18.0.2"}, Connected: true, LastSeen: secondsAgo(10),
			},
		},
		manager: managerFacts{
			pod: "manager-1", publicKey: "key", version: "v0.1.3", started: now.Add(-time.Hour), ttl: ttl,
		},
		addressed: true, connected: true, lastReceived: now.Add(-time.Second),
		cluster: clusterFacts{
			subnets: []string{"10.42.0.0/16"}, nodeAddresses: []string{"10.42.0.1"},
			udpEndpoints: []string{"192.0.2.1:8084"}, dns: detour.DNS{Domain: "cluster.local"},
		},
	}
}

func secondsAgo(n int) *metav1.Time {
	return &metav1.Time{Time: now.Add(-time.Duration(n) * time.Second)}
}

func TestDecide(t *testing.T) {
	silentFor := func(d time.Duration) func(*facts) {
		return func(f *facts) {
			f.connected, f.lastReceived = false, now.Add(-d)
			f.session.Status.LastSeen = &metav1.Time{Time: now.Add(-d)}
		}
	}
	for name, c := range map[string]struct {
		change    func(*facts)
		assign    bool
		delete    bool
		reason    string
		message   string
		requeue   time.Duration
		lastSeen  *metav1.Time
		addresses []string
		connected bool
	}{
		"connected": {
			change: func(*facts) {}, reason: detour.ReasonConnected, message: "the laptop's tunnel is up",
			requeue: lastSeenStep, lastSeen: secondsAgo(10), addresses: []string{"198.18.0.2"}, connected: true,
		},
		"connected, last seen long ago": {
			change: func(f *facts) { f.session.Status.LastSeen = secondsAgo(32) },
			reason: detour.ReasonConnected, requeue: lastSeenStep,
			lastSeen: secondsAgo(1), addresses: []string{"198.18.0.2"}, connected: true,
		},
		"connected for the first time": {
			change: func(f *facts) { f.session.Status.LastSeen, f.session.Status.Connected = nil, false },
			reason: detour.ReasonConnected, requeue: lastSeenStep,
			lastSeen: secondsAgo(1), addresses: []string{"198.18.0.2"}, connected: true,
		},
		"connected again": {
			change: func(f *facts) { f.session.Status.Connected = false },
			reason: detour.ReasonConnected, requeue: lastSeenStep,
			lastSeen: secondsAgo(1), addresses: []string{"198.18.0.2"}, connected: true,
		},
		"silent": {
			change: silentFor(time.Minute), reason: detour.ReasonLaptopGone,
			message: "the laptop does not respond: its traffic goes to the cluster's pods",
			requeue: lastSeenStep, lastSeen: secondsAgo(60), addresses: []string{"198.18.0.2"},
		},
		"silent, and the TTL ends before the next pass": {
			change: silentFor(ttl - 20*time.Second), reason: detour.ReasonLaptopGone,
			requeue: 20*time.Second + ttlSlack, lastSeen: secondsAgo(580), addresses: []string{"198.18.0.2"},
		},
		"silent for exactly the TTL": {
			change: silentFor(ttl), reason: detour.ReasonLaptopGone,
			requeue: ttlSlack, lastSeen: secondsAgo(600), addresses: []string{"198.18.0.2"},
		},
		"silent for longer than the TTL": {
			change: silentFor(ttl + time.Second), delete: true,
			lastSeen: secondsAgo(601), addresses: []string{"198.18.0.2"}, connected: true,
		},
		"silent for longer, but the manager is new": {
			change: func(f *facts) {
				silentFor(time.Hour)(f)
				f.lastReceived, f.manager.started = time.Time{}, now.Add(-time.Minute)
			},
			reason: detour.ReasonLaptopGone, requeue: lastSeenStep,
			lastSeen: secondsAgo(3600), addresses: []string{"198.18.0.2"},
		},
		"recorded long ago, but a packet arrived since": {
			change: func(f *facts) { f.session.Status.LastSeen, f.connected = secondsAgo(3600), false },
			reason: detour.ReasonLaptopGone, requeue: lastSeenStep,
			lastSeen: secondsAgo(3600), addresses: []string{"198.18.0.2"},
		},
		"a new session": {
			change: func(f *facts) {
				f.session.Status, f.lastReceived = detour.SessionStatus{}, time.Time{}
				f.addressed, f.connected = false, false
				f.session.CreationTimestamp = metav1.NewTime(now)
			},
			assign: true,
		},
		"a new session that has its addresses": {
			change: func(f *facts) {
				f.session.Status = detour.SessionStatus{Addresses: []string{"198.18.0.9"}}
				f.addressed, f.assigned, f.connected, f.lastReceived = false, true, false, time.Time{}
				f.session.CreationTimestamp = metav1.NewTime(now)
			},
			reason: detour.ReasonAddressAssigned, message: "waiting for the laptop to open its tunnel",
			requeue: lastSeenStep, addresses: []string{"198.18.0.9"},
		},
		"never connected, and given up": {
			change: func(f *facts) {
				f.session.Status = detour.SessionStatus{Addresses: []string{"198.18.0.9"}}
				f.connected, f.lastReceived = false, time.Time{}
				f.session.CreationTimestamp = metav1.NewTime(now.Add(-ttl - time.Second))
			},
			delete: true, addresses: []string{"198.18.0.9"},
		},
		"addresses of another pool": {
			change: func(f *facts) { f.addressed = false },
			assign: true, lastSeen: secondsAgo(10), addresses: []string{"198.18.0.2"}, connected: true,
		},
		"a full pool": {
			change: func(f *facts) {
				f.session.Status, f.addressed, f.assigned = detour.SessionStatus{}, false, true
			},
			reason:  detour.ReasonNoAddressLeft,
			message: "all laptop addresses are in use: widen sessionCIDR in the chart, or delete unused sessions",
			requeue: blockedRecheck,
		},
		"a key that another session owns": {
			change: func(f *facts) {
				f.keyOwner = &detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bob"}}
			},
			reason: detour.ReasonKeyTaken,
			message: "session bob in namespace shop owns this public key: create a session with a key of its own, " +
				"as `detour connect` does",
			requeue: blockedRecheck, lastSeen: secondsAgo(10),
		},
		"a key that another session was found to own when addresses were assigned": {
			change: func(f *facts) {
				f.addressed, f.assigned = false, true
				f.keyOwner = &detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bob"}}
			},
			reason: detour.ReasonKeyTaken, requeue: blockedRecheck, lastSeen: secondsAgo(10),
		},
		"not a key": {
			change: func(f *facts) { f.keyErr = errors.New("not base64") },
			reason: detour.ReasonBadKey, message: "the session's public key is not a WireGuard key: connect again",
			lastSeen: secondsAgo(10), addresses: []string{"198.18.0.2"}, connected: true,
		},
		"an incompatible version": {
			change: func(f *facts) { f.session.Spec.ClientVersion = "v0.2.0" },
			reason: detour.ReasonVersionMismatch,
			message: "detour v0.2.0 on the laptop does not work with traffic-manager v0.1.3: " +
				"install that version on the laptop, or run `detour install` again",
			requeue: lastSeenStep, lastSeen: secondsAgo(10), addresses: []string{"198.18.0.2"}, connected: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := readyFacts()
			c.change(&f)
			before := f.session.DeepCopy()
			d := decide(f, now)
			require.Equal(t, before, f.session, "the facts are not changed")
			assert.Equal(t, c.assign, d.assign)
			assert.Equal(t, c.delete, d.delete)
			assert.Equal(t, c.requeue, d.requeue)
			assert.Equal(t, c.lastSeen, d.status.LastSeen)
			assert.Equal(t, c.addresses, d.status.Addresses)
			assert.Equal(t, c.connected, d.status.Connected)
			ready := meta.FindStatusCondition(d.status.Conditions, detour.ConditionReady)
			if c.reason == "" {
				require.Nil(t, ready)
				return
			}
			require.NotNil(t, ready)
			assert.Equal(t, c.reason, ready.Reason)
			assert.Equal(t, c.reason == detour.ReasonConnected, ready.Status == metav1.ConditionTrue)
			if c.message != "" {
				assert.Equal(t, c.message, ready.Message)
			}
		})
	}
}

func TestDecideTellsTheLaptopAboutTheCluster(t *testing.T) {
	f := readyFacts()
	status := decide(f, now).status
	assert.Equal(t, f.cluster.subnets, status.Subnets)
	assert.Equal(t, f.cluster.nodeAddresses, status.NodeAddresses)
	assert.Equal(t, f.cluster.udpEndpoints, status.UDPEndpoints)
	assert.Equal(t, f.cluster.dns, status.DNS)
	assert.Equal(t, "manager-1", status.ManagerPod)
	assert.Equal(t, "key", status.ManagerPublicKey)
	assert.Equal(t, "v0.1.3", status.ManagerVersion)
	assert.Equal(t, ttl, status.GivenUpAfter.Duration)
}

// Below v1 a minor version may change everything, from v1 on only a major version may.
func TestCompatible(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{a: "v0.1.0", b: "v0.1.0", want: true},
		{a: "v0.1.0", b: "v0.1.7", want: true},
		{a: "v0.1.0-dev", b: "v0.1.0", want: true},
		{a: "0.1.0", b: "v0.1.0", want: true},
		{a: "v0.1.0", b: "v0.2.0", want: false},
		{a: "v0.1.0", b: "v0.10.0", want: false},
		{a: "v1.0.0", b: "v1.9.3", want: true},
		{a: "v1.0.0", b: "v2.0.0", want: false},
		{a: "v1.0.0", b: "v10.0.0", want: false},
		{a: "v0.9.0", b: "v1.0.0", want: false},
		{a: "", b: "v0.1.0", want: false},
		{a: "dev", b: "v0.1.0", want: false},
	} {
		t.Run(c.a+" and "+c.b, func(t *testing.T) {
			assert.Equal(t, c.want, compatible(c.a, c.b))
			assert.Equal(t, c.want, compatible(c.b, c.a), "both ends come to the same answer")
		})
	}
}
