// Package cluster is the laptop's access to the Kubernetes API with the user's own kubeconfig: clients, and a way to follow one
// object for as long as it is of interest.
package cluster

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/version"
)

// requestTimeout bounds one request that is not a watch.
const requestTimeout = 15 * time.Second

// refollow is the pause before an object is asked for again after the connection failed.
const refollow = time.Second

// New makes a client of the types that the laptop deals with. It asks the API server nothing.
func New(config *rest.Config) (client.WithWatch, error) {
	types := runtime.NewScheme()
	// The mapping from type to resource is known: discovery would cost round trips at every command.
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, group := range []struct {
		add   func(*runtime.Scheme) error
		kinds []string
	}{
		{detour.AddToScheme, nil}, {scheme.AddToScheme, nil},
	} {
		if err := group.add(types); err != nil {
			return nil, fmt.Errorf("register the types: %w", err)
		}
	}
	for _, kind := range []string{"Session", "Intercept"} {
		mapper.Add(detour.GroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	for _, kind := range []string{"Service", "Pod"} {
		mapper.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Namespace"), meta.RESTScopeRoot)
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet"} {
		mapper.Add(appsv1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	config = rest.CopyConfig(config)
	config.UserAgent = "detour/" + version.Version
	config.QPS, config.Burst = 50, 100
	c, err := client.NewWithWatch(config, client.Options{Scheme: types, Mapper: mapper})
	if err != nil {
		return nil, fmt.Errorf("make the API client: %w", err)
	}
	return c, nil
}

// Bounded is ctx with the time that one request may take.
func Bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTimeout)
}

// Follow calls seen with every state of an object until seen returns true, the object is gone (gone is true), or ctx ends. When the API
// server cannot be had it goes on trying; trouble, which may be nil, is told each failure and nil when it is over.
func Follow[T client.Object](ctx context.Context, c client.WithWatch, object T, list client.ObjectList, seen func(T) bool, trouble func(error)) (gone bool, err error) {
	if trouble == nil {
		trouble = func(error) {}
	}
	key, uid := client.ObjectKeyFromObject(object), object.GetUID()
	for {
		done, gone, err := followOnce(ctx, c, key, uid, object, list, seen, trouble)
		if done || gone {
			return gone, nil
		}
		if ctx.Err() != nil {
			return false, fmt.Errorf("follow %s: %w", key, ctx.Err())
		}
		if err != nil {
			trouble(err)
			select {
			case <-ctx.Done():
				return false, fmt.Errorf("follow %s: %w", key, ctx.Err())
			case <-time.After(refollow):
			}
		}
	}
}

func followOnce[T client.Object](ctx context.Context, c client.WithWatch, key client.ObjectKey, uid any, object T, list client.ObjectList, seen func(T) bool, trouble func(error)) (done, gone bool, err error) {
	getting, cancel := Bounded(ctx)
	err = c.Get(getting, key, object)
	cancel()
	if apierrors.IsNotFound(err) {
		return false, true, nil
	}
	if err != nil {
		return false, false, err
	}
	if any(object.GetUID()) != uid {
		return false, true, nil // another object of the same name
	}
	trouble(nil)
	if seen(object) {
		return true, false, nil
	}
	w, err := c.Watch(ctx, list, &client.ListOptions{
		Namespace: key.Namespace, FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, key.Name),
		Raw: &metav1.ListOptions{ResourceVersion: object.GetResourceVersion()},
	})
	if err != nil {
		return false, false, err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		now, ok := event.Object.(T)
		switch {
		case event.Type == watch.Deleted:
			return false, true, nil
		case event.Type == watch.Error:
			return false, false, apierrors.FromObject(event.Object)
		case ok && event.Type != watch.Bookmark && seen(now):
			return true, false, nil
		}
	}
	return false, false, nil // the API server ended the watch: they live for some minutes
}
