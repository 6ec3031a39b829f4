package manager

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
)

// Pods and services may have addresses of networks that nothing declares: those that a cloud gives to pods, and on API servers without the
// ServiceCIDR API all services. Then each network of this size with one of them in it counts.
const undeclared4, undeclared6 = 24, 64

// networks finds what a laptop routes to the VIF: services, pods, and the manager's own addresses; and the nodes in there, which it does not.
func (r *sessionReconciler) networks(ctx context.Context) (subnets, nodeAddresses []string, err error) {
	var set []netip.Prefix
	for _, a := range r.pool.own() {
		set = append(set, netip.PrefixFrom(a, a.BitLen()))
	}
	declare := func(texts []string) {
		for _, t := range texts {
			if p, err := netip.ParsePrefix(t); err == nil {
				set = append(set, p.Masked())
			}
		}
	}
	// What is listed is only read.
	shared := client.UnsafeDisableDeepCopy
	var cidrs networkingv1.ServiceCIDRList
	if err := r.List(ctx, &cidrs, shared); err != nil && !meta.IsNoMatchError(err) {
		return nil, nil, fmt.Errorf("list the service networks: %w", err)
	}
	for _, c := range cidrs.Items {
		declare(c.Spec.CIDRs)
	}
	var nodes corev1.NodeList
	if err := r.List(ctx, &nodes, shared); err != nil {
		return nil, nil, fmt.Errorf("list the nodes: %w", err)
	}
	for _, n := range nodes.Items {
		declare(n.Spec.PodCIDRs)
	}
	var used []netip.Addr
	var services corev1.ServiceList
	if err := r.List(ctx, &services, shared); err != nil {
		return nil, nil, fmt.Errorf("list the services: %w", err)
	}
	for i := range services.Items {
		used = append(used, clusterIPs(&services.Items[i])...)
	}
	var pods corev1.PodList
	if err := r.List(ctx, &pods, shared); err != nil {
		return nil, nil, fmt.Errorf("list the pods: %w", err)
	}
	for i := range pods.Items {
		used = append(used, podAddresses(&pods.Items[i])...)
	}
	set = withUndeclared(set, used)
	r.known.Store(&set)
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			address, err := netip.ParseAddr(a.Address)
			if err == nil && contains(set, address) {
				nodeAddresses = append(nodeAddresses, address.String())
			}
		}
	}
	slices.Sort(nodeAddresses)
	for _, p := range set {
		subnets = append(subnets, p.String())
	}
	slices.Sort(subnets)
	return slices.Compact(subnets), slices.Compact(nodeAddresses), nil
}

// withUndeclared adds networks for the addresses that are in none yet.
func withUndeclared(set []netip.Prefix, used []netip.Addr) []netip.Prefix {
	for _, a := range used {
		if contains(set, a) {
			continue
		}
		bits := undeclared4
		if a.Is6() {
			bits = undeclared6
		}
		if p, err := a.Prefix(bits); err == nil {
			set = append(set, p)
		}
	}
	return set
}

func contains(set []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(set, func(p netip.Prefix) bool { return p.Contains(a) })
}

// podAddresses are a pod's own; one on the node's network has none.
func podAddresses(o client.Object) (all []netip.Addr) {
	p, ok := o.(*corev1.Pod)
	if !ok || p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			all = append(all, a)
		}
	}
	return all
}

func clusterIPs(o client.Object) []netip.Addr {
	s, ok := o.(*corev1.Service)
	if !ok {
		return nil
	}
	return parseAddresses(s.Spec.ClusterIPs)
}

// elsewhere passes the events of objects with an address that is in no network that laptops know.
func (r *sessionReconciler) elsewhere(addresses func(client.Object) []netip.Addr) predicate.Predicate {
	strange := func(o client.Object) bool {
		known := r.known.Load()
		return known != nil && slices.ContainsFunc(addresses(o), func(a netip.Addr) bool { return !contains(*known, a) })
	}
	return predicate.Funcs{
		CreateFunc:  func(e event.CreateEvent) bool { return strange(e.Object) },
		UpdateFunc:  func(e event.UpdateEvent) bool { return strange(e.ObjectNew) },
		DeleteFunc:  func(event.DeleteEvent) bool { return false }, // a network that nobody uses any more does no harm for a while
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// otherNode passes the events of nodes that come, go, or get other networks or addresses. Their heartbeats it does not.
func otherNode() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.Node)
		now, also := e.ObjectNew.(*corev1.Node)
		return !ok || !also || !slices.Equal(before.Spec.PodCIDRs, now.Spec.PodCIDRs) || !slices.Equal(before.Status.Addresses, now.Status.Addresses)
	}}
}
