// Package targets lists what can be intercepted in a namespace: each port of its services, and each
// workload that no service selects. It gives the answer that the traffic-manager would give, so
// that `detour list` and `detour intercept` agree. Start with List.
package targets

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// List reads the targets of a namespace with the credentials of config. Its errors are sentences
// for the user. It does not change config.
func List(ctx context.Context, config *rest.Config, namespace string) ([]*daemonv1.Target, error) {
	explained := func(err error, doing string) error {
		return explain.Context{Doing: doing, Server: config.Host, Namespace: namespace}.Error(err)
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, explained(err, "connect to the cluster")
	}
	services, err := clients.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explained(err, "list the services of namespace "+namespace)
	}
	reader, err := newReader(config)
	if err != nil {
		return nil, explained(err, "connect to the cluster")
	}
	all, err := workloads.List(ctx, reader, namespace, argo.Lister(clients.Discovery().RESTClient()))
	if err != nil {
		return nil, explained(err, "list the workloads of namespace "+namespace)
	}
	// Only the pods show a service mesh's proxy that was injected. A user who may not list pods
	// learns of the mesh when they intercept.
	pods, err := clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if apierrors.IsForbidden(err) {
		pods = &corev1.PodList{}
	} else if err != nil {
		return nil, explained(err, "list the pods of namespace "+namespace)
	}
	intercepts, err := interceptsByPort(ctx, reader, namespace)
	if err != nil {
		return nil, err
	}
	rows := targetsOf(services.Items, all, pods.Items, intercepts)
	if len(rows) == 0 {
		// The API server returns empty lists for a namespace that does not exist. A user who may
		// not read the namespace gets the empty list.
		if _, err := clients.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return nil, explained(err, "read the namespace")
		}
	}
	return rows, nil
}

// newReader returns a client that reads Kubernetes' own objects and detour's.
func newReader(config *rest.Config) (client.Reader, error) {
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), detour.AddToScheme(types)); err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: types})
}

// portKey identifies a container port of a workload. Port 0 stands for a workload that is replaced
// without its traffic.
type portKey struct {
	workload string // "deployment/catalog"
	port     int32
	protocol string // "UDP"; empty means TCP
}

// byPort are intercepts by the container port that they take over.
type byPort map[portKey][]*daemonv1.TargetIntercept

// interceptsByPort returns the intercepts of a namespace. There are none if detour is not
// installed.
func interceptsByPort(ctx context.Context, c client.Reader, namespace string) (byPort, error) {
	var list detour.InterceptList
	found := byPort{}
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		explained := explain.Error(err, "list the intercepts of namespace "+namespace)
		if !strings.Contains(explained.Error(), "not installed") {
			return nil, explained
		}
		return found, nil
	}
	for _, i := range list.Items {
		if w := i.Status.Workload; w != nil && i.Status.Phase != detour.PhaseRefused {
			key := portKey{
				workload: fmt.Sprintf("%s/%s", strings.ToLower(w.Kind), w.Name),
				port:     i.Status.ContainerPort, protocol: string(i.Status.Protocol),
			}
			found[key] = append(found[key], &daemonv1.TargetIntercept{
				Name: i.Name, Laptop: i.Status.Laptop, Phase: string(i.Status.Phase),
				Mode: strings.ToLower(string(i.Spec.Mode)), Requests: i.Status.Requests, Agents: i.Status.Agents,
				SinceUnix: i.CreationTimestamp.Unix(), Redirect: i.Status.Redirect,
			})
		}
	}
	return found, nil
}
