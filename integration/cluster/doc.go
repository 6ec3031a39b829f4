// Package cluster runs a real Kubernetes on this machine for the suites: etcd, API server, controller-manager, scheduler,
// and per node kubelet, containerd, kube-proxy and CNI, with CoreDNS as a pod. The control plane and each node live in network
// namespaces of their own; the host (and any laptop) reaches only the API server and the nodes, as in real life.
package cluster

import (
	"fmt"
	"os"
	"path/filepath"
)

// Version is the Kubernetes that is run. Later ones refuse cgroup v1.
const Version = "v1.34.4"

// Addresses of the cluster. Pods and services are dual-stack, IPv4 first.
const (
	apiServer    = "172.30.0.1"
	apiServer6   = "fd30::1"
	hostAddress  = "172.30.0.254"
	podCIDRs     = "10.244.0.0/16,fd44::/56"
	serviceCIDRs = "10.96.0.0/16,fd96::/112"
	dnsAddress   = "10.96.0.10"
	firstService = "10.96.0.1"
	controlPlane = "detour-cp" // network namespace
	hostLink     = "detour-host"
	// fabricAddress is the bridge's own address on its link, one of those that anybody may choose.
	fabricAddress = "02:de:70:00:00:01"
)

// Cluster is a local cluster, running or not, kept in a directory.
type Cluster struct {
	Dir   string // state, logs, certificates
	Cache string // built binaries
	Nodes int
}

// Default is the cluster of this user: in $DETOUR_CLUSTER_DIR, or in $DETOUR_CACHE, or in ~/.cache/detour.
func Default() (*Cluster, error) {
	cache := os.Getenv("DETOUR_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("find the home directory: %w", err)
		}
		cache = filepath.Join(home, ".cache", "detour")
	}
	dir := os.Getenv("DETOUR_CLUSTER_DIR")
	if dir == "" {
		dir = filepath.Join(cache, "cluster")
	}
	return &Cluster{Dir: dir, Cache: cache, Nodes: 2}, nil
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// Server is the API server's URL.
func (c *Cluster) Server() string { return "https://" + apiServer + ":6443" }

// CA is the path of the API server's certificate authority.
func (c *Cluster) CA() string { return filepath.Join(c.Dir, "pki", "ca.crt") }

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

// node is one node's names and addresses.
type node struct {
	name     string // node1, also the suffix of its network namespace
	ns       string
	address  string
	address6 string
}

func nodeOf(i int) node {
	return node{
		name: fmt.Sprintf("node%d", i), ns: fmt.Sprintf("detour-node%d", i),
		address: fmt.Sprintf("172.30.0.%d", 10+i), address6: fmt.Sprintf("fd30::%x", 0x10+i),
	}
}

func (c *Cluster) nodes() []node {
	var all []node
	for i := 1; i <= c.Nodes; i++ {
		all = append(all, nodeOf(i))
	}
	return all
}
