package install

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

// fakeCluster returns access to a cluster that has these objects and no API server.
func fakeCluster(t *testing.T, objects ...client.Object) *cluster {
	types := runtime.NewScheme()
	require.NoError(t, scheme.AddToScheme(types))
	require.NoError(t, detour.AddToScheme(types))
	c := fake.NewClientBuilder().WithScheme(types).WithObjects(objects...).Build()
	return &cluster{Client: c, server: "https://k8s.example:6443"}
}

// fakeOptions returns the options of a command in the namespace detour-system of a fake cluster.
func fakeOptions(t *testing.T, objects ...client.Object) commonOptions {
	return commonOptions{
		IOStreams: genericiooptions.NewTestIOStreamsDiscard(),
		namespace: Namespace,
		timeout:   noticeDelay,
		cluster:   fakeCluster(t, objects...),
	}
}

// exists reports whether the cluster has an object of this kind and name.
func (c *cluster) exists(t *testing.T, object client.Object) bool {
	err := c.Get(t.Context(), client.ObjectKeyFromObject(object), object)
	require.NoError(t, client.IgnoreNotFound(err))
	return err == nil
}

func namespaceNamed(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}
