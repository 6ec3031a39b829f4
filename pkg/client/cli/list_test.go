package cli

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func service(name string, selector map[string]string, ports ...corev1.ServicePort) corev1.Service {
	return corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", Selector: selector, Ports: ports}}
}

func template(labels map[string]string) *corev1.PodTemplateSpec {
	return &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
	}
}

// The list says the same of a service as the traffic-manager would.
func TestRows(t *testing.T) {
	catalog := map[string]string{"app": "catalog"}
	http := corev1.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromString("http"), Protocol: corev1.ProtocolTCP}
	number := corev1.ServicePort{Port: 8080, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}
	sctp := corev1.ServicePort{Name: "signal", Port: 99, TargetPort: intstr.FromInt32(99), Protocol: corev1.ProtocolSCTP}
	dns := corev1.ServicePort{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(53), Protocol: corev1.ProtocolUDP}
	one := map[string]*corev1.PodTemplateSpec{"deployment/catalog": template(map[string]string{"app": "catalog", "version": "1"}), "deployment/other": template(nil)}
	two := map[string]*corev1.PodTemplateSpec{"deployment/catalog": template(catalog), "deployment/canary": template(catalog)}
	eve := []holder{{Name: "catalog-1", Laptop: "eve@thinkpad", Phase: "Active", Mode: "intercept", Requests: "all requests", redirect: "attach"}}
	held := map[string][]holder{"deployment/catalog:8080": eve, "deployment/other:8080": {{Laptop: "mallory@mac"}}}
	argos := map[string]*corev1.PodTemplateSpec{"rollout/catalog": template(catalog)}
	stable := map[string]string{"app": "catalog", "rollouts-pod-template-hash": "76d9f8c7"}
	other := listed{Workload: "deployment/other", Why: "no service leads to it"}
	catalogs := []listed{{Workload: "deployment/catalog", Why: other.Why}, other}

	for name, c := range map[string]struct {
		services  []corev1.Service
		templates map[string]*corev1.PodTemplateSpec
		want      []listed
	}{
		"nothing":   {nil, nil, []listed{}},
		"workloads": {nil, one, catalogs},
		"each port": {[]corev1.Service{service("catalog", catalog, http, number)}, one, []listed{
			{Service: "catalog", Port: "80/http", Workload: "deployment/catalog", Intercepts: eve},
			{Service: "catalog", Port: "8080", Workload: "deployment/catalog", Intercepts: eve},
			other,
		}},
		"no such pods":  {[]corev1.Service{service("cart", map[string]string{"app": "cart"}, http)}, one, []listed{{Service: "cart", Port: "80/http", Why: "no workload stands behind it"}, catalogs[0], catalogs[1]}},
		"no selector":   {[]corev1.Service{service("outside", nil, http)}, one, []listed{{Service: "outside", Port: "80/http", Why: "no workload stands behind it"}, catalogs[0], catalogs[1]}},
		"two workloads": {[]corev1.Service{service("catalog", catalog, http)}, two, []listed{{Service: "catalog", Port: "80/http", Workload: "deployment/canary, deployment/catalog", Why: "several workloads stand behind it"}}},
		"argo's":        {[]corev1.Service{service("catalog", stable, http)}, argos, []listed{{Service: "catalog", Port: "80/http", Workload: "rollout/catalog"}}},
		"not argo's":    {[]corev1.Service{service("catalog", stable, http)}, two, []listed{{Service: "catalog", Port: "80/http", Why: "no workload stands behind it"}, {Workload: "deployment/canary", Why: other.Why}, catalogs[0]}},
		"no ports":      {[]corev1.Service{service("headless", catalog)}, one, []listed{other}},
	} {
		t.Run(name, func(t *testing.T) {
			got := rowsOf(c.services, c.templates, held)
			for i := range got { // how is the injector's to decide; that there is a way is what counts here
				assert.Equal(t, got[i].Why == "", got[i].Redirect != "")
				got[i].Redirect = ""
			}
			assert.Equal(t, c.want, got)
		})
	}
	t.Run("UDP", func(t *testing.T) {
		mine := map[string][]holder{"deployment/catalog:53UDP": eve}
		rows := rowsOf([]corev1.Service{service("catalog", catalog, dns, sctp)}, one, mine)
		require.Len(t, rows, 3)
		assert.Equal(t, eve, rows[0].Intercepts)
		assert.NotEmpty(t, rows[0].Redirect)
		assert.Contains(t, rows[1].Why, "only TCP and UDP")
	})
	t.Run("no services, for a script", func(t *testing.T) {
		assert.Equal(t, "[]\n", string(printed(t, "json", rowsOf(nil, nil, nil), nil)))
	})
	t.Run("how it is redirected now", func(t *testing.T) {
		rows := rowsOf([]corev1.Service{service("catalog", catalog, http)}, one, held)
		assert.Equal(t, "attach", rows[0].Redirect)
	})
}
