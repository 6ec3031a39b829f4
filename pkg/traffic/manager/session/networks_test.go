package session

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"
)

func pod(hostNetwork bool, phase corev1.PodPhase, ips ...string) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: hostNetwork}, Status: corev1.PodStatus{Phase: phase}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func TestPodAddresses(t *testing.T) {
	assert.Equal(t, addresses("10.42.0.7", "fd42::7"),
		podAddresses(pod(false, corev1.PodRunning, "10.42.0.7", "fd42::7")))
	assert.Empty(t, podAddresses(pod(true, corev1.PodRunning, "172.30.0.11")), "the address is the node's")
	assert.Empty(t, podAddresses(pod(false, corev1.PodSucceeded, "10.42.0.7")),
		"another pod may have the address by now")
	assert.Empty(t, podAddresses(pod(false, corev1.PodPending)))
}

func TestUndeclaredNetworks(t *testing.T) {
	declared := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}
	used := addresses("10.42.0.7", "fd42::7", "172.20.3.9", "172.20.3.10", "172.20.4.1", "fd43::1:2", "fd43::9")
	var got []string
	for _, p := range addUndeclared(declared, used) {
		got = append(got, p.String())
	}
	assert.Equal(t, []string{"10.42.0.0/24", "fd42::/64", "172.20.3.0/24", "172.20.4.0/24", "fd43::/64"}, got)
}

// Only an event that changes the networks reconciles the sessions.
func TestNetworkEvents(t *testing.T) {
	r := &Reconciler{}
	p := r.unknownNetwork(podAddresses)
	unknown, known := pod(false, corev1.PodRunning, "172.20.3.9"), pod(false, corev1.PodRunning, "10.42.0.7")
	assert.False(t, p.Create(event.CreateEvent{Object: unknown}), "no session has its networks yet")
	r.networks.Store(&[]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")})
	assert.True(t, p.Create(event.CreateEvent{Object: unknown}))
	assert.True(t, p.Update(event.UpdateEvent{ObjectOld: known, ObjectNew: unknown}))
	assert.False(t, p.Update(event.UpdateEvent{ObjectOld: unknown, ObjectNew: known}))
	assert.False(t, p.Delete(event.DeleteEvent{Object: unknown}))

	heartbeat, other := &corev1.Node{}, &corev1.Node{}
	heartbeat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	other.Spec.PodCIDRs = []string{"10.42.1.0/24"}
	assert.True(t, nodeNetworkChanged().Create(event.CreateEvent{Object: other}))
	assert.False(t, nodeNetworkChanged().Update(event.UpdateEvent{ObjectOld: &corev1.Node{}, ObjectNew: heartbeat}))
	assert.True(t, nodeNetworkChanged().Update(event.UpdateEvent{ObjectOld: heartbeat, ObjectNew: other}))
}
