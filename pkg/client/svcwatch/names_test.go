package svcwatch

import (
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func named(name string) corev1.Service {
	return corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", ResourceVersion: "1"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.5", Ports: []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}},
		},
	}
}

func TestConversionOfAPIObjects(t *testing.T) {
	ready, unready, name, tcp, number, hostname := true, false, "http", corev1.ProtocolTCP, int32(8080), "db-0"
	assert.Equal(t, records.Service{
		Name: "catalog", ClusterIPs: []string{"10.96.0.5"},
		Ports: []records.Port{{Name: "http", Protocol: "TCP", Number: 80}},
	}, service(new(named("catalog"))))
	external := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "outside"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "db.example.com"},
	}
	assert.Equal(t, records.Service{Name: "outside", External: "db.example.com", IsExternal: true}, service(&external))
	both := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "both"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.5", ClusterIPs: []string{"10.96.0.5", "fd00::5"}},
	}
	assert.Equal(t, []string{"10.96.0.5", "fd00::5"}, service(&both).ClusterIPs)

	s := discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "db-abc", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &number}, {}},
		Endpoints: []discoveryv1.Endpoint{
			{
				Addresses: []string{"10.42.0.1"}, Hostname: &hostname,
				Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			},
			{Addresses: []string{"10.42.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &unready}},
			{Addresses: []string{"10.42.0.3"}},
		},
	}
	assert.Equal(t, records.Slice{
		Name: "db-abc", Service: "db",
		Ports: []records.Port{{Name: "http", Protocol: "TCP", Number: 8080}, {Number: -1}},
		Endpoints: []records.Endpoint{
			{Hostname: "db-0", Addresses: []string{"10.42.0.1"}}, {Addresses: []string{"10.42.0.3"}},
		},
	}, slice(&s))
}

// watched stands in for a follower.
type watched struct{ live bool }

func (w *watched) Live() bool { return w.live }

func TestNamesAnswersOnlyWhileBothWatchesAreLive(t *testing.T) {
	services, endpoints, namespaces := &watched{}, &watched{}, &watched{}
	n := &Names{
		zone: records.New("cluster.local", "shop"), services: services, endpoints: endpoints, namespaces: namespaces,
		known: map[string]bool{"shop": true},
	}
	n.zone.PutService(service(new(named("catalog"))))
	q := dns.Question{Name: "catalog.shop.svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET}
	for _, live := range [][2]bool{{false, false}, {true, false}, {false, true}, {true, true}} {
		services.live = live[0]
		endpoints.live = live[1]
		_, ok := n.Answer(q)
		assert.Equal(t, live[0] && live[1], ok)
	}
	_, known := n.Namespace("shop")
	assert.False(t, known)
	namespaces.live = true
	for name, want := range map[string]bool{"shop": true, "com": false} {
		exists, known := n.Namespace(name)
		require.True(t, known)
		assert.Equal(t, want, exists, name)
	}
}
