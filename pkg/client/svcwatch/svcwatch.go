// Package svcwatch watches the connected namespace's Services and EndpointSlices, and the names of
// all namespaces, with the user's own credentials, so that the laptop can answer DNS queries
// itself. It knows nothing of resources that the user may not watch: the cluster's DNS answers for
// those. Start with Watch.
package svcwatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/client/resourcewatch"
	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

// fallback is what happens while a resource is not watched.
const fallback = "the cluster's DNS answers instead"

// Config says what to watch.
type Config struct {
	Namespace string
	// Domain is the cluster's DNS domain, as in cluster.local.
	Domain string
	// Alive reports whether the laptop reaches the cluster. The watches start again when it
	// changes. It may be nil: then only HTTP/2's pings discover a dead connection, after 45 s.
	Alive func() bool
	Log   *slog.Logger
}

// Names answers for the namespace's names from the watched objects. It implements dnsproxy.Names.
type Names struct {
	zone                            *records.Zone
	services, endpoints, namespaces interface{ Live() bool }
	group                           *resourcewatch.Group

	// mu guards the fields below.
	mu    sync.Mutex
	known map[string]bool // the namespaces that exist
}

// Watch starts the watches and returns at once. The caller ends them with Close. config is not
// changed.
func Watch(config *rest.Config, c Config) (*Names, error) {
	config = rest.CopyConfig(config)
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.Timeout = 0 // a watch has no end
	web, err := credential.HTTPClient(config)
	if err != nil {
		return nil, fmt.Errorf("watch the cluster's names: %w", err)
	}
	kube, err := kubernetes.NewForConfigAndClient(config, web)
	if err != nil {
		return nil, fmt.Errorf("watch the cluster's names: %w", err)
	}
	return start(kube, c, func() { net.CloseIdleConnectionsFor(web.Transport) }), nil
}

func start(kube kubernetes.Interface, c Config, hangUp func()) *Names {
	n := &Names{zone: records.New(c.Domain, c.Namespace), known: map[string]bool{}}
	services, endpoints := n.followServices(kube, c), n.followEndpoints(kube, c)
	namespaces := n.followNamespaces(kube, c)
	n.services, n.endpoints, n.namespaces = services, endpoints, namespaces
	n.group = resourcewatch.Start(hangUp, services, endpoints, namespaces)
	if c.Alive != nil {
		n.group.FollowLiveness(c.Alive)
	}
	return n
}

func (n *Names) followServices(kube kubernetes.Interface, c Config) *resourcewatch.Follower {
	api := kube.CoreV1().Services(c.Namespace)
	return &resourcewatch.Follower{Config: resourcewatch.Config{
		Resource: "services", Fallback: fallback, DeniedLevel: slog.LevelInfo, Log: c.Log, Object: &corev1.Service{},
		List: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		Watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
		Store: resourcewatch.Callbacks[*corev1.Service]{
			Put:      func(s *corev1.Service) { n.zone.PutService(service(s)) },
			Remove:   func(s *corev1.Service) { n.zone.DeleteService(s.Name) },
			Replaced: func(all []*corev1.Service) { n.zone.SetServices(each(all, service)) },
		},
	}}
}

func (n *Names) followEndpoints(kube kubernetes.Interface, c Config) *resourcewatch.Follower {
	api := kube.DiscoveryV1().EndpointSlices(c.Namespace)
	return &resourcewatch.Follower{Config: resourcewatch.Config{
		Resource: "endpointslices", Fallback: fallback, DeniedLevel: slog.LevelInfo, Log: c.Log,
		Object: &discoveryv1.EndpointSlice{},
		List:   func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		Watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
		Store: resourcewatch.Callbacks[*discoveryv1.EndpointSlice]{
			Put:      func(s *discoveryv1.EndpointSlice) { n.zone.PutSlice(slice(s)) },
			Remove:   func(s *discoveryv1.EndpointSlice) { n.zone.DeleteSlice(s.Name) },
			Replaced: func(all []*discoveryv1.EndpointSlice) { n.zone.SetSlices(each(all, slice)) },
		},
	}}
}

func (n *Names) followNamespaces(kube kubernetes.Interface, c Config) *resourcewatch.Follower {
	api := kube.CoreV1().Namespaces()
	return &resourcewatch.Follower{Config: resourcewatch.Config{
		Resource: "namespaces", Fallback: fallback, DeniedLevel: slog.LevelInfo, Log: c.Log,
		Object: &corev1.Namespace{},
		List:   func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		Watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
		Store: resourcewatch.Callbacks[*corev1.Namespace]{
			Put:    func(ns *corev1.Namespace) { n.setKnown(func() { n.known[ns.Name] = true }) },
			Remove: func(ns *corev1.Namespace) { n.setKnown(func() { delete(n.known, ns.Name) }) },
			Replaced: func(all []*corev1.Namespace) {
				n.setKnown(func() {
					n.known = make(map[string]bool, len(all))
					for _, ns := range all {
						n.known[ns.Name] = true
					}
				})
			},
		},
	}}
}

func (n *Names) setKnown(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// Close ends the watches and waits for them.
func (n *Names) Close() { n.group.Close() }

// Answer answers for the names of the connected namespace while both of its watches are live.
func (n *Names) Answer(q dns.Question) (records.Answer, bool) {
	if !n.services.Live() || !n.endpoints.Live() {
		return records.Answer{}, false
	}
	return n.zone.Answer(q)
}

// Namespace reports whether a namespace exists. known is false if the user may not list namespaces.
func (n *Names) Namespace(name string) (exists, known bool) {
	if !n.namespaces.Live() {
		return false, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[name], true
}

func each[A, B any](all []A, f func(A) B) []B {
	result := make([]B, 0, len(all))
	for _, a := range all {
		result = append(result, f(a))
	}
	return result
}

func service(s *corev1.Service) records.Service {
	r := records.Service{
		Name: s.Name, ClusterIPs: s.Spec.ClusterIPs,
		IsExternal: s.Spec.Type == corev1.ServiceTypeExternalName, External: s.Spec.ExternalName,
	}
	if len(r.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
		r.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	for _, p := range s.Spec.Ports {
		r.Ports = append(r.Ports, records.Port{Name: p.Name, Protocol: string(p.Protocol), Number: int(p.Port)})
	}
	return r
}

// slice leaves out the endpoints that are not ready. The API reports all endpoints of a service
// with publishNotReadyAddresses as ready.
func slice(s *discoveryv1.EndpointSlice) records.Slice {
	r := records.Slice{Name: s.Name, Service: s.Labels[discoveryv1.LabelServiceName]}
	for _, p := range s.Ports {
		port := records.Port{Number: -1}
		if p.Name != nil {
			port.Name = *p.Name
		}
		if p.Protocol != nil {
			port.Protocol = string(*p.Protocol)
		}
		if p.Port != nil {
			port.Number = int(*p.Port)
		}
		r.Ports = append(r.Ports, port)
	}
	for _, e := range s.Endpoints {
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			continue
		}
		endpoint := records.Endpoint{Addresses: e.Addresses}
		if e.Hostname != nil {
			endpoint.Hostname = *e.Hostname
		}
		r.Endpoints = append(r.Endpoints, endpoint)
	}
	return r
}
