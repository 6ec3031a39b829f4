package session

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

// Pods and services may have addresses of networks that nothing declares: the pod networks of some
// clouds, and every service network on an API server without the ServiceCIDR API. Such an address
// adds the network of this many bits around it.
const undeclaredBits4, undeclaredBits6 = 24, 64

// findNetworks returns the networks that a laptop routes to the VIF: those of services and pods,
// and the manager's own addresses. It also returns the nodes' addresses in these networks, which a
// laptop keeps reaching directly.
func (r *Reconciler) findNetworks(ctx context.Context) (subnets, nodeAddresses []string, err error) {
	var nodes corev1.NodeList
	if err := r.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil { // only read
		return nil, nil, fmt.Errorf("list the nodes: %w", err)
	}
	networks, err := r.declaredNetworks(ctx, nodes.Items)
	if err != nil {
		return nil, nil, err
	}
	used, err := r.usedAddresses(ctx)
	if err != nil {
		return nil, nil, err
	}
	networks = addUndeclared(networks, used)
	r.networks.Store(&networks)
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			address, err := netip.ParseAddr(a.Address)
			if err == nil && contains(networks, address) {
				nodeAddresses = append(nodeAddresses, address.String())
			}
		}
	}
	for _, p := range networks {
		subnets = append(subnets, p.String())
	}
	slices.Sort(nodeAddresses)
	slices.Sort(subnets)
	return slices.Compact(subnets), slices.Compact(nodeAddresses), nil
}

// declaredNetworks returns the manager's addresses, the ServiceCIDRs, and the nodes' pod networks.
func (r *Reconciler) declaredNetworks(ctx context.Context, nodes []corev1.Node) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, a := range r.config.Pool.ManagerAddresses() {
		networks = append(networks, netip.PrefixFrom(a, a.BitLen()))
	}
	declare := func(texts []string) {
		for _, t := range texts {
			if p, err := netip.ParsePrefix(t); err == nil {
				networks = append(networks, p.Masked())
			}
		}
	}
	var cidrs networkingv1.ServiceCIDRList
	if err := r.List(ctx, &cidrs, client.UnsafeDisableDeepCopy); err != nil && !meta.IsNoMatchError(err) {
		return nil, fmt.Errorf("list the service networks: %w", err)
	}
	for _, c := range cidrs.Items {
		declare(c.Spec.CIDRs)
	}
	for _, n := range nodes {
		declare(n.Spec.PodCIDRs)
	}
	return networks, nil
}

// usedAddresses returns the addresses of all services and pods.
func (r *Reconciler) usedAddresses(ctx context.Context) ([]netip.Addr, error) {
	var used []netip.Addr
	var services corev1.ServiceList
	if err := r.List(ctx, &services, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the services: %w", err)
	}
	for i := range services.Items {
		used = append(used, clusterIPs(&services.Items[i])...)
	}
	var pods corev1.PodList
	if err := r.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the pods: %w", err)
	}
	for i := range pods.Items {
		used = append(used, podAddresses(&pods.Items[i])...)
	}
	return used, nil
}

// addUndeclared adds networks for those addresses that none of the networks contains.
func addUndeclared(networks []netip.Prefix, used []netip.Addr) []netip.Prefix {
	for _, a := range used {
		if contains(networks, a) {
			continue
		}
		bits := undeclaredBits4
		if a.Is6() {
			bits = undeclaredBits6
		}
		if p, err := a.Prefix(bits); err == nil {
			networks = append(networks, p)
		}
	}
	return networks
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// podAddresses returns a pod's own addresses. A pod on the node's network has none.
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
	return ParseAddresses(s.Spec.ClusterIPs)
}

// unknownNetwork passes the events of objects with an address that is in none of the networks in
// the sessions' status.
func (r *Reconciler) unknownNetwork(addresses func(client.Object) []netip.Addr) predicate.Predicate {
	unknown := func(o client.Object) bool {
		networks := r.networks.Load()
		return networks != nil &&
			slices.ContainsFunc(addresses(o), func(a netip.Addr) bool { return !contains(*networks, a) })
	}
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool { return unknown(e.Object) },
		UpdateFunc: func(e event.UpdateEvent) bool { return unknown(e.ObjectNew) },
		// A network that nobody uses any more does no harm until the next regular pass.
		DeleteFunc:  func(event.DeleteEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// nodeNetworkChanged passes the events of nodes that are added, are removed, or get other networks
// or addresses. It drops their heartbeats.
func nodeNetworkChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, okBefore := e.ObjectOld.(*corev1.Node)
		now, okNow := e.ObjectNew.(*corev1.Node)
		return !okBefore || !okNow || !slices.Equal(before.Spec.PodCIDRs, now.Spec.PodCIDRs) ||
			!slices.Equal(before.Status.Addresses, now.Status.Addresses)
	}}
}
