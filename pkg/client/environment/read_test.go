package environment

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

var catalogLabels = map[string]string{"app": "catalog"}

// catalogPod returns a ready pod of the workload catalog that was created some minutes after the
// epoch.
func catalogPod(name string, minutes int, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, Labels: catalogLabels,
			CreationTimestamp: metav1.NewTime(time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute)),
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}},
			{Name: "metrics", Ports: []corev1.ContainerPort{{ContainerPort: 9090}}},
		}},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}},
		},
	}
}

func catalogService(selector map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "catalog"},
		Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromString("http")},
			{Name: "metrics", Port: 9090},
			{Name: "number", Port: 81, TargetPort: intstr.FromInt32(8080)},
		}},
	}
}

func catalogDeployment() *appsv1.Deployment {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: catalogLabels}}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "catalog"},
		Spec:       appsv1.DeploymentSpec{Template: template},
	}
}

func TestFindTheContainerOfTheApp(t *testing.T) {
	objects := []client.Object{
		catalogService(catalogLabels), catalogDeployment(),
		catalogPod("old", 1, corev1.ConditionTrue), catalogPod("new", 2, corev1.ConditionTrue),
		catalogPod("starting", 3, corev1.ConditionFalse),
	}
	for name, c := range map[string]struct {
		objects   []client.Object
		request   *daemonv1.InterceptRequest
		container string
		want      string // error
	}{
		"by a port with a name": {
			objects: objects, request: &daemonv1.InterceptRequest{Service: "catalog", Port: "http"}, container: "app",
		},
		"by the number of a port": {
			objects: objects, request: &daemonv1.InterceptRequest{Service: "catalog", Port: "81"}, container: "app",
		},
		"by a port without a target": {
			objects: objects, request: &daemonv1.InterceptRequest{Service: "catalog", Port: "9090"},
			container: "metrics",
		},
		"by the name of the container": {
			objects:   objects,
			request:   &daemonv1.InterceptRequest{Service: "catalog", Container: "metrics"},
			container: "metrics",
		},
		"of a workload with its kind": {
			objects:   objects,
			request:   &daemonv1.InterceptRequest{Workload: "Deployment/catalog", Container: "app"},
			container: "app",
		},
		"of a workload without its kind": {
			objects:   objects,
			request:   &daemonv1.InterceptRequest{Workload: "catalog", Container: "app"},
			container: "app",
		},
		"of a service that does not exist": {
			request: &daemonv1.InterceptRequest{Service: "catalog"},
			want:    `services "catalog" not found`,
		},
		"of a service without a selector": {
			objects: []client.Object{catalogService(nil)},
			request: &daemonv1.InterceptRequest{Service: "catalog"},
			want:    "service catalog has no selector, so detour cannot find its pods",
		},
		"of a service without pods": {
			objects: []client.Object{catalogService(catalogLabels)},
			request: &daemonv1.InterceptRequest{Service: "catalog"},
			want:    "no pod of service catalog is running",
		},
		"of a workload that does not exist": {
			objects: objects,
			request: &daemonv1.InterceptRequest{Workload: "StatefulSet/catalog"},
			want:    "there is no workload catalog in namespace shop",
		},
		"of a workload without pods": {
			objects: []client.Object{catalogDeployment()},
			request: &daemonv1.InterceptRequest{Workload: "catalog"},
			want:    "no pod of deployment/catalog is running",
		},
		"of a container that does not exist": {
			objects: objects,
			request: &daemonv1.InterceptRequest{Workload: "catalog", Container: "cart"},
			want:    "it has no container cart: it has app, metrics",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := finder{objects: fake.NewClientBuilder().WithObjects(c.objects...).Build(), namespace: "shop"}
			pod, container, err := f.find(t.Context(), c.request)
			if c.want != "" {
				require.EqualError(t, err, c.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, "new", pod.Name, "it is the newest pod that is ready")
			require.Equal(t, c.container, container.Name)
		})
	}
}

func TestEachSourceIsReadOnce(t *testing.T) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "keys"},
		Data:       map[string][]byte{"k": []byte("v")},
	}
	reads := map[string]int{}
	counting := interceptor.Funcs{
		Get: func(
			ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, _ ...client.GetOption,
		) error {
			reads[key.Name]++
			if key.Name == "hidden" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, key.Name, errors.New("no"))
			}
			return c.Get(ctx, key, o)
		},
	}
	objects := fake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjects(secret).
		WithInterceptorFuncs(counting).Build()
	s := newClusterSources(objects, "shop")
	for range 2 {
		values, err := s.Secret(t.Context(), "keys")
		require.NoError(t, err)
		require.Equal(t, map[string]string{"k": "v"}, values)
		_, err = s.Secret(t.Context(), "hidden")
		require.EqualError(t, err, "you may not read it")
		_, err = s.ConfigMap(t.Context(), "absent")
		require.ErrorIs(t, err, errAbsent)
	}
	require.Equal(t, map[string]int{"keys": 1, "hidden": 1, "absent": 1}, reads)
}
