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
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("10.42.0.7"), netip.MustParseAddr("fd42::7")}, podAddresses(pod(false, corev1.PodRunning, "10.42.0.7", "fd42::7")))
	assert.Empty(t, podAddresses(pod(true, corev1.PodRunning, "172.30.0.11")), "that is the node's")
	assert.Empty(t, podAddresses(pod(false, corev1.PodSucceeded, "10.42.0.7")), "it may be another pod's by now")
	assert.Empty(t, podAddresses(pod(false, corev1.PodPending)))
}

func TestUndeclaredNetworks(t *testing.T) {
	declared := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}
	var used []netip.Addr
	for _, a := range []string{"10.42.0.7", "fd42::7", "172.20.3.9", "172.20.3.10", "172.20.4.1", "fd43::1:2", "fd43::9"} {
		used = append(used, netip.MustParseAddr(a))
	}
	var got []string
	for _, p := range addUndeclared(declared, used) {
		got = append(got, p.String())
	}
	assert.Equal(t, []string{"10.42.0.0/24", "fd42::/64", "172.20.3.0/24", "172.20.4.0/24", "fd43::/64"}, got)
}

// Only what changes the networks wakes the sessions.
func TestEventsThatMatter(t *testing.T) {
	r := &Reconciler{}
	p := r.unknownNetwork(podAddresses)
	strange, usual := pod(false, corev1.PodRunning, "172.20.3.9"), pod(false, corev1.PodRunning, "10.42.0.7")
	assert.False(t, p.Create(event.CreateEvent{Object: strange}), "no session has been told anything yet")
	r.networks.Store(&[]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")})
	assert.True(t, p.Create(event.CreateEvent{Object: strange}))
	assert.True(t, p.Update(event.UpdateEvent{ObjectOld: usual, ObjectNew: strange}))
	assert.False(t, p.Update(event.UpdateEvent{ObjectOld: strange, ObjectNew: usual}))
	assert.False(t, p.Delete(event.DeleteEvent{Object: strange}))

	heartbeat, other := &corev1.Node{}, &corev1.Node{}
	heartbeat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	other.Spec.PodCIDRs = []string{"10.42.1.0/24"}
	assert.True(t, nodeNetworkChanged().Create(event.CreateEvent{Object: other}))
	assert.False(t, nodeNetworkChanged().Update(event.UpdateEvent{ObjectOld: &corev1.Node{}, ObjectNew: heartbeat}))
	assert.True(t, nodeNetworkChanged().Update(event.UpdateEvent{ObjectOld: heartbeat, ObjectNew: other}))
}
