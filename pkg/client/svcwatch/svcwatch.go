// Package svcwatch keeps what DNS needs to know of the connected namespace, and the names of all namespaces, by watching the API with the
// user's own credentials. What the user may not watch is not known here, and the cluster's DNS is asked instead.
package svcwatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

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
	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

// aliveInterval is how often it is looked whether the laptop has lost the cluster.
const aliveInterval = time.Second

// Config says what to watch.
type Config struct {
	Namespace string
	Domain    string // the cluster's, as in cluster.local
	// Alive says whether the cluster can be reached. A watch whose connection died without a word is otherwise found out only by
	// HTTP/2's pings, after 45 s.
	Alive func() bool
	Log   *slog.Logger
}

// Names is what is known. It implements dnsproxy.Names.
type Names struct {
	zone                            *records.Zone
	services, endpoints, namespaces *follower
	stop                            context.CancelFunc
	done                            sync.WaitGroup

	mu    sync.Mutex
	known map[string]bool
}

// Watch begins to watch, and returns at once. Close ends it.
func Watch(config *rest.Config, c Config) (*Names, error) {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	config.Timeout = 0 // a watch takes as long as it takes
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("watch the cluster's names: %w", err)
	}
	web.Transport = credential.End(web.Transport)
	kube, err := kubernetes.NewForConfigAndClient(config, web)
	if err != nil {
		return nil, fmt.Errorf("watch the cluster's names: %w", err)
	}
	// What is begun anew must not be sent into the connection that died.
	return begin(kube, c, func() { net.CloseIdleConnectionsFor(web.Transport) }), nil
}

func begin(kube kubernetes.Interface, c Config, hangUp func()) *Names {
	n := &Names{zone: records.New(c.Domain, c.Namespace), known: map[string]bool{}}
	services, endpoints, namespaces := kube.CoreV1().Services(c.Namespace), kube.DiscoveryV1().EndpointSlices(c.Namespace), kube.CoreV1().Namespaces()
	n.services = &follower{
		what: "services", log: c.Log, object: &corev1.Service{},
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return services.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return services.Watch(ctx, o)
		},
		store: store[*corev1.Service]{
			put:    func(s *corev1.Service) { n.zone.PutService(service(s)) },
			remove: func(s *corev1.Service) { n.zone.DeleteService(s.Name) },
			all:    func(all []*corev1.Service) { n.zone.SetServices(each(all, service)) },
		},
	}
	n.endpoints = &follower{
		what: "endpointslices", log: c.Log, object: &discoveryv1.EndpointSlice{},
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return endpoints.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return endpoints.Watch(ctx, o)
		},
		store: store[*discoveryv1.EndpointSlice]{
			put:    func(s *discoveryv1.EndpointSlice) { n.zone.PutSlice(slice(s)) },
			remove: func(s *discoveryv1.EndpointSlice) { n.zone.DeleteSlice(s.Name) },
			all:    func(all []*discoveryv1.EndpointSlice) { n.zone.SetSlices(each(all, slice)) },
		},
	}
	n.namespaces = &follower{
		what: "namespaces", log: c.Log, object: &corev1.Namespace{},
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return namespaces.Watch(ctx, o)
		},
		store: store[*corev1.Namespace]{
			put:    func(ns *corev1.Namespace) { n.change(func() { n.known[ns.Name] = true }) },
			remove: func(ns *corev1.Namespace) { n.change(func() { delete(n.known, ns.Name) }) },
			all: func(all []*corev1.Namespace) {
				n.change(func() {
					n.known = make(map[string]bool, len(all))
					for _, ns := range all {
						n.known[ns.Name] = true
					}
				})
			},
		},
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	for _, f := range n.followers() {
		n.done.Go(func() { f.run(ctx) })
	}
	if c.Alive != nil {
		n.done.Go(func() { n.revive(ctx, c.Alive, hangUp) })
	}
	return n
}

func (n *Names) followers() []*follower { return []*follower{n.services, n.endpoints, n.namespaces} }

func (n *Names) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// revive begins all watches anew when the laptop is cut off from the cluster, and when it is back.
func (n *Names) revive(ctx context.Context, alive func() bool, hangUp func()) {
	tick := time.NewTicker(aliveInterval)
	defer tick.Stop()
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := alive()
		if now == lost {
			for _, f := range n.followers() {
				f.again()
			}
			hangUp()
		}
		lost = !now
	}
}

// Close stops watching and waits until nothing runs.
func (n *Names) Close() {
	n.stop()
	n.done.Wait()
}

// Answer answers for the names of the connected namespace while its watches are whole.
func (n *Names) Answer(q dns.Question) (records.Answer, bool) {
	if !n.services.live.Load() || !n.endpoints.live.Load() {
		return records.Answer{}, false
	}
	return n.zone.Answer(q)
}

// Namespace says whether a namespace exists, if the user may list them.
func (n *Names) Namespace(name string) (exists, known bool) {
	if !n.namespaces.live.Load() {
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
	r := records.Service{Name: s.Name, ClusterIPs: s.Spec.ClusterIPs, IsExternal: s.Spec.Type == corev1.ServiceTypeExternalName, External: s.Spec.ExternalName}
	if len(r.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
		r.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	for _, p := range s.Spec.Ports {
		r.Ports = append(r.Ports, records.Port{Name: p.Name, Protocol: string(p.Protocol), Number: int(p.Port)})
	}
	return r
}

// slice leaves out what is not ready. Of a service with publishNotReadyAddresses the API says that all is.
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
