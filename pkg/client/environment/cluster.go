package environment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// Cluster reads ConfigMaps and Secrets of a namespace, each once.
type Cluster struct {
	ctx       context.Context //nolint:containedctx // it lives as long as one call
	clients   kubernetes.Interface
	namespace string
	seen      map[string]entries
}

type entries struct {
	all map[string]string
	err error
}

// NewCluster makes one for as long as ctx.
func NewCluster(ctx context.Context, clients kubernetes.Interface, namespace string) *Cluster {
	return &Cluster{ctx: ctx, clients: clients, namespace: namespace, seen: map[string]entries{}}
}

func (c *Cluster) once(key string, get func() (map[string]string, error)) (map[string]string, error) {
	e, ok := c.seen[key]
	if !ok {
		e.all, e.err = get()
		switch {
		case apierrors.IsNotFound(e.err):
			e.err = ErrAbsent
		case apierrors.IsForbidden(e.err):
			e.err = errors.New("you may not read it")
		}
		c.seen[key] = e
	}
	return e.all, e.err
}

// ConfigMap implements Sources.
func (c *Cluster) ConfigMap(name string) (map[string]string, error) {
	return c.once("configmap "+name, func() (map[string]string, error) {
		m, err := c.clients.CoreV1().ConfigMaps(c.namespace).Get(c.ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return m.Data, nil
	})
}

// Secret implements Sources.
func (c *Cluster) Secret(name string) (map[string]string, error) {
	return c.once("secret "+name, func() (map[string]string, error) {
		s, err := c.clients.CoreV1().Secrets(c.namespace).Get(c.ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		all := map[string]string{}
		for key, value := range s.Data {
			all[key] = string(value)
		}
		return all, nil
	})
}

// Find picks a pod of what is to be intercepted, and in it the app's container.
func Find(ctx context.Context, clients kubernetes.Interface, namespace string, r *daemonv1.InterceptRequest) (*corev1.Pod, *corev1.Container, error) {
	if r.Workload == "" {
		return ofService(ctx, clients, namespace, r.Service, r.Port, r.Container)
	}
	kind, name, ok := strings.Cut(r.Workload, "/")
	if !ok {
		kind, name = "", r.Workload
	}
	return ofWorkload(ctx, clients, namespace, kind, name, r.Container)
}

func ofService(ctx context.Context, clients kubernetes.Interface, namespace, service, port, container string) (*corev1.Pod, *corev1.Container, error) {
	svc, err := clients.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	if len(svc.Spec.Selector) == 0 {
		return nil, nil, fmt.Errorf("service %s has no selector: detour cannot know its pods", service)
	}
	target := int32(0)
	for _, p := range svc.Spec.Ports {
		if port == p.Name || port == fmt.Sprint(p.Port) || len(svc.Spec.Ports) == 1 {
			target = p.TargetPort.IntVal
			if target == 0 && p.TargetPort.StrVal == "" {
				target = p.Port
			}
			if p.TargetPort.StrVal != "" {
				port = p.TargetPort.StrVal
			}
		}
	}
	return pick(ctx, clients, namespace, labels.SelectorFromSet(svc.Spec.Selector), func(p *corev1.Pod) int32 {
		if target != 0 {
			return target
		}
		return inject.NamedPort(p, port)
	}, container)
}

// ofWorkload takes a workload of any kind when that is not said.
func ofWorkload(ctx context.Context, clients kubernetes.Interface, namespace, kind, name, container string) (*corev1.Pod, *corev1.Container, error) {
	apps := clients.AppsV1()
	deployment := func(name string) (*metav1.LabelSelector, error) {
		w, err := apps.Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return w.Spec.Selector, nil
	}
	var selector *metav1.LabelSelector
	for _, k := range []struct {
		kind string
		get  func() (*metav1.LabelSelector, error)
	}{
		{"Deployment", func() (*metav1.LabelSelector, error) { return deployment(name) }},
		{"StatefulSet", func() (*metav1.LabelSelector, error) {
			w, err := apps.StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			return w.Spec.Selector, nil
		}},
		{"DaemonSet", func() (*metav1.LabelSelector, error) {
			w, err := apps.DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			return w.Spec.Selector, nil
		}},
		{argo.Kind, func() (*metav1.LabelSelector, error) {
			all, err := argo.List(ctx, clients.Discovery().RESTClient(), namespace)
			for _, w := range all {
				if w.GetName() != name {
					continue
				}
				if ref := w.Spec.WorkloadRef; w.Spec.Selector == nil && ref != nil && ref.Kind == "Deployment" {
					return deployment(ref.Name)
				}
				return w.Spec.Selector, nil
			}
			return nil, err
		}},
	} {
		if selector != nil || (kind != "" && kind != k.kind) {
			continue
		}
		found, err := k.get()
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, nil, err
		}
		selector = found
	}
	if selector == nil {
		return nil, nil, fmt.Errorf("there is no workload %s in namespace %s", name, namespace)
	}
	which, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, nil, fmt.Errorf("the selector of %s: %w", name, err)
	}
	return pick(ctx, clients, namespace, which, func(*corev1.Pod) int32 { return 0 }, container)
}

// pick takes the newest pod that runs, one that is ready first.
func pick(ctx context.Context, clients kubernetes.Interface, namespace string, which labels.Selector, port func(*corev1.Pod) int32, container string) (*corev1.Pod, *corev1.Container, error) {
	list, err := clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: which.String()})
	if err != nil {
		return nil, nil, err
	}
	var best *corev1.Pod
	for i := range list.Items {
		p := &list.Items[i]
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		case best == nil || ready(p) && !ready(best) || ready(p) == ready(best) && best.CreationTimestamp.Before(&p.CreationTimestamp):
			best = p
		}
	}
	if best == nil {
		return nil, nil, errors.New("no pod of it runs")
	}
	name, err := inject.PickContainer(&corev1.PodTemplateSpec{ObjectMeta: best.ObjectMeta, Spec: best.Spec}, container, port(best))
	if err != nil {
		return nil, nil, err
	}
	for _, c := range slices.Concat(best.Spec.Containers, best.Spec.InitContainers) {
		if c.Name == name {
			return best, &c, nil
		}
	}
	return nil, nil, fmt.Errorf("pod %s has no container %s", best.Name, name)
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
