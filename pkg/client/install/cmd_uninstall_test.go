package install

import (
	"testing"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/wellknown"
)

func annotated(annotations map[string]string) client.Object {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "role", Annotations: annotations}}
}

func TestUninstallRefusesTheWrongNamespace(t *testing.T) {
	for name, c := range map[string]struct {
		annotations map[string]string
		want        string
	}{
		"the release is in this namespace": {
			annotations: map[string]string{releaseNamespaceAnnotation: "detour-system"},
		},
		"the webhook is not Helm's": {},
		"the release is in another namespace": {
			annotations: map[string]string{releaseNamespaceAnnotation: "tools"},
			want: "the traffic-manager is in namespace tools, not in detour-system: run `detour uninstall " +
				"--manager-namespace tools`",
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkReleaseNamespace(annotated(c.annotations), "detour-system")
			if c.want == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, c.want)
			}
		})
	}
}

func TestOrphansAreThoseOfThisRelease(t *testing.T) {
	for name, c := range map[string]struct {
		annotations map[string]string
		want        bool
	}{
		"of this release": {
			annotations: map[string]string{
				releaseNameAnnotation:      wellknown.TrafficManager,
				releaseNamespaceAnnotation: "detour-system",
			},
			want: true,
		},
		"of a release in another namespace": {
			annotations: map[string]string{
				releaseNameAnnotation:      wellknown.TrafficManager,
				releaseNamespaceAnnotation: "tools",
			},
		},
		"of another release in this namespace": {
			annotations: map[string]string{
				releaseNameAnnotation:      "grafana",
				releaseNamespaceAnnotation: "detour-system",
			},
		},
		"of no release": {},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, isOrphan(annotated(c.annotations), "detour-system"))
		})
	}
}

func TestUninstallEndsAllIntercepts(t *testing.T) {
	intercept := &detour.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "catalog-1"}}
	session := &detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "alice"}}
	o := &uninstallOptions{commonOptions: fakeOptions(t, intercept, session)}
	require.NoError(t, o.endSessions(t.Context()))
	require.False(t, o.cluster.exists(t, intercept))
	require.False(t, o.cluster.exists(t, session))
	require.Equal(t, Result{Sessions: 1, Intercepts: 1}, o.result)
}

func TestUninstallKeepsANamespaceThatIsNotItsOwn(t *testing.T) {
	in := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: Namespace, Name: name} }
	for name, c := range map[string]struct {
		labels  map[string]string
		removed bool
	}{
		"install created it":  {labels: map[string]string{createdLabel: "true"}, removed: true},
		"it was there before": {},
	} {
		t.Run(name, func(t *testing.T) {
			namespace := namespaceNamed(Namespace, c.labels)
			keys := &corev1.Secret{ObjectMeta: in(wellknown.KeysSecret)}
			lease := &coordinationv1.Lease{ObjectMeta: in(wellknown.TrafficManager)}
			other := &corev1.Secret{ObjectMeta: in("registry")}
			o := &uninstallOptions{commonOptions: fakeOptions(t, namespace, keys, lease, other)}
			require.NoError(t, o.removeNamespace(t.Context()))
			require.Equal(t, c.removed, o.result.NamespaceRemoved)
			require.Equal(t, !c.removed, o.cluster.exists(t, namespace))
			// The fake cluster does not delete the objects of a namespace with it.
			require.Equal(t, c.removed, o.cluster.exists(t, keys))
			require.Equal(t, c.removed, o.cluster.exists(t, lease))
			require.True(t, o.cluster.exists(t, other))
		})
	}
	t.Run("there is no namespace", func(t *testing.T) {
		o := &uninstallOptions{commonOptions: fakeOptions(t)}
		require.NoError(t, o.removeNamespace(t.Context()))
		require.False(t, o.result.NamespaceRemoved)
	})
}
