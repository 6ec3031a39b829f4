// Package vif puts a laptop on a cluster's network: WireGuard in user space on both ends, a TUN on the laptop (Interface)
// and a gVisor netstack in the cluster (Hub) that ends the laptop's flows and dials their destinations with ordinary sockets, so
// that the cluster's end needs no privilege at all. WireGuard messages travel over any byte stream (see stream.go). The package
// knows nothing of Kubernetes.
package vif
