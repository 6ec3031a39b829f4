package environment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// Read returns the environment of the app's container that an intercept is about, read with the
// credentials of config. missing has one short reason for each part that could not be read. The
// error is a sentence for the user. Read does not change config.
func Read(
	ctx context.Context, config *rest.Config, namespace string, r *daemonv1.InterceptRequest,
) (variables map[string]string, missing []string, err error) {
	explained := func(err error) error {
		return explain.Context{
			Doing: "find the app's environment", Server: config.Host,
			Namespace: namespace,
		}.Error(err)
	}
	objects, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return nil, nil, explained(err)
	}
	api, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, nil, explained(err)
	}
	f := finder{objects: objects, rollouts: argo.Lister(api.RESTClient()), namespace: namespace}
	pod, container, err := f.find(ctx, r)
	if err != nil {
		return nil, nil, explained(err)
	}
	variables, missing = resolve(ctx, pod, container, newClusterSources(objects, namespace))
	return variables, missing, nil
}

// finder finds the app's container in a namespace.
type finder struct {
	objects   client.Reader
	rollouts  workloads.RolloutLister
	namespace string
}

// find picks a running pod of the intercept's target, and in it the app's container.
func (f *finder) find(ctx context.Context, r *daemonv1.InterceptRequest) (*corev1.Pod, *corev1.Container, error) {
	if r.Workload != "" {
		return f.ofWorkload(ctx, r)
	}
	return f.ofService(ctx, r)
}

func (f *finder) ofService(ctx context.Context, r *daemonv1.InterceptRequest) (*corev1.Pod, *corev1.Container, error) {
	var service corev1.Service
	if err := f.objects.Get(ctx, client.ObjectKey{Namespace: f.namespace, Name: r.Service}, &service); err != nil {
		return nil, nil, err
	}
	if len(service.Spec.Selector) == 0 {
		return nil, nil, fmt.Errorf("service %s has no selector, so detour cannot find its pods", r.Service)
	}
	pods, err := f.pods(ctx, labels.SelectorFromSet(service.Spec.Selector))
	if err != nil {
		return nil, nil, err
	}
	pod := workloads.NewestPod(pods)
	if pod == nil {
		return nil, nil, fmt.Errorf("no pod of service %s is running", r.Service)
	}
	return pickContainer(pod, r.Container, containerPort(&service, r, pod))
}

// containerPort returns the number of the container port that the request's service port leads to.
// It returns 0 if the request does not determine one, as with the mode ingest.
func containerPort(service *corev1.Service, r *daemonv1.InterceptRequest, pod *corev1.Pod) int32 {
	var want *intstr.IntOrString
	if r.Port != "" {
		parsed := intstr.Parse(r.Port)
		want = &parsed
	}
	port, err := workloads.ServicePort(service, want, corev1.Protocol(r.Protocol))
	switch {
	case err != nil:
		return 0 // the traffic-manager reports it
	case port.TargetPort.StrVal != "":
		return inject.NamedPort(pod, port.TargetPort.StrVal)
	case port.TargetPort.IntVal != 0:
		return port.TargetPort.IntVal
	}
	return port.Port
}

// ofWorkload takes a workload of any kind if the request names no kind.
func (f *finder) ofWorkload(ctx context.Context, r *daemonv1.InterceptRequest) (*corev1.Pod, *corev1.Container, error) {
	kind, name, ok := strings.Cut(r.Workload, "/")
	if !ok {
		kind, name = "", r.Workload
	}
	all, err := workloads.List(ctx, f.objects, f.namespace, f.rollouts)
	if err != nil {
		return nil, nil, err
	}
	found := workloads.Named(all, kind, name)
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("there is no workload %s in namespace %s", name, f.namespace)
	}
	w := found[0]
	pods, err := f.pods(ctx, w.Selector)
	if err != nil {
		return nil, nil, err
	}
	pod := workloads.NewestPod(w.Running(pods))
	if pod == nil {
		return nil, nil, fmt.Errorf("no pod of %s is running", w.Name())
	}
	return pickContainer(pod, r.Container, 0)
}

func (f *finder) pods(ctx context.Context, selector labels.Selector) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := f.objects.List(ctx, &list, client.InNamespace(f.namespace),
		client.MatchingLabelsSelector{Selector: selector})
	return list.Items, err
}

// pickContainer returns the container that name and port mean. Both may be empty.
func pickContainer(pod *corev1.Pod, name string, port int32) (*corev1.Pod, *corev1.Container, error) {
	name, err := inject.PickContainer(&corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}, name, port)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if c.Name == name {
			return pod, &c, nil
		}
	}
	return nil, nil, fmt.Errorf("pod %s has no container %s", pod.Name, name)
}

// clusterSources reads the ConfigMaps and Secrets of a namespace, each only once.
type clusterSources struct {
	objects   client.Reader
	namespace string
	cache     map[string]entries
}

// entries are the content of a ConfigMap or Secret, or why it cannot be read.
type entries struct {
	values map[string]string
	err    error
}

func newClusterSources(objects client.Reader, namespace string) *clusterSources {
	return &clusterSources{objects: objects, namespace: namespace, cache: map[string]entries{}}
}

// ConfigMap implements sources.
func (c *clusterSources) ConfigMap(ctx context.Context, name string) (map[string]string, error) {
	return c.once("configmap/"+name, func() (map[string]string, error) {
		var m corev1.ConfigMap
		err := c.objects.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: name}, &m)
		return m.Data, err
	})
}

// Secret implements sources.
func (c *clusterSources) Secret(ctx context.Context, name string) (map[string]string, error) {
	return c.once("secret/"+name, func() (map[string]string, error) {
		var s corev1.Secret
		if err := c.objects.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: name}, &s); err != nil {
			return nil, err
		}
		values := map[string]string{}
		for key, value := range s.Data {
			values[key] = string(value)
		}
		return values, nil
	})
}

func (c *clusterSources) once(key string, get func() (map[string]string, error)) (map[string]string, error) {
	e, ok := c.cache[key]
	if !ok {
		e.values, e.err = get()
		switch {
		case apierrors.IsNotFound(e.err):
			e.err = errAbsent
		case apierrors.IsForbidden(e.err):
			e.err = errors.New("you may not read it")
		}
		c.cache[key] = e
	}
	return e.values, e.err
}
