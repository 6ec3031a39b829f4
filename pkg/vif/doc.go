// Package vif puts a laptop on a cluster's network: WireGuard in user space at both ends, a TUN on
// the laptop and a network stack in the cluster.
//
// Start at Up, which makes the laptop's Interface, or at NewHub, which makes the cluster's Hub. The
// hub ends the laptops' flows and dials their destinations with ordinary sockets, so that the
// cluster's end needs no privilege. The parts are in packages of their own: transport carries
// WireGuard's messages, tundev is the laptop's interface, netstack is the hub's network stack,
// packet reads packets, wgkey has the keys, and remap shows networks at other addresses. The
// packages know nothing of Kubernetes.
package vif
