// Package cluster runs a real Kubernetes on this machine for the suites: etcd, API server,
// controller-manager, scheduler, and per node kubelet, containerd, kube-proxy and CNI, with CoreDNS
// as a pod. The control plane and each node live in network namespaces of their own; the host (and
// any laptop) reaches only the API server and the nodes, as in real life.
package cluster

import (
	"fmt"
	"os"
	"path/filepath"
)

// Version is the Kubernetes that is run. Later ones refuse cgroup v1.
const Version = "v1.34.4"

// Addresses in the cluster, dual-stack, IPv4 first. Two clusters have the same, as clusters often
// do.
const (
	podCIDRs     = "10.244.0.0/16,fd44::/56"
	serviceCIDRs = "10.96.0.0/16,fd96::/112"
	dnsAddress   = "10.96.0.10"
	firstService = "10.96.0.1"
	// fabricAddress is the bridge's own address on its link, one of those that anybody may choose.
	fabricAddress = "02:de:70:00:00:01"
)

// Cluster is a local cluster, running or not, kept in a directory.
type Cluster struct {
	Dir   string // state, logs, certificates
	Cache string // built binaries
	Nodes int

	number int // from 1
}

// Default is the cluster of this user: in $DETOUR_CLUSTER_DIR, or in $DETOUR_CACHE, or in
// ~/.cache/detour.
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
	return &Cluster{Dir: dir, Cache: cache, Nodes: 2, number: 1}, nil
}

// Second is another one beside it, of one node, for what a user of two clusters does. It has no
// laptops.
func Second() (*Cluster, error) {
	c, err := Default()
	if err != nil {
		return nil, err
	}
	c.Dir, c.Nodes, c.number = c.Dir+"-2", 1, 2
	return c, nil
}

// name is what the names of the cluster's network namespaces, links and cgroups start with.
func (c *Cluster) name() string {
	if c.number == 1 {
		return "detour"
	}
	return fmt.Sprintf("detour%d", c.number)
}

// controlPlane is the network namespace of the control plane and of the bridge that joins all
// others.
func (c *Cluster) controlPlane() string { return c.name() + "-cp" }

// hostLink is the host's leg on that bridge.
func (c *Cluster) hostLink() string { return c.name() + "-host" }

// address and address6 are those of a host on the bridge.
func (c *Cluster) address(host byte) string  { return fmt.Sprintf("172.%d.0.%d", 29+c.number, host) }
func (c *Cluster) address6(host byte) string { return fmt.Sprintf("fd%d::%x", 29+c.number, host) }

const (
	apiServerHost = 1
	nodeHost      = 10 // and the node's number
	thisHost      = 254
)

func (c *Cluster) apiServer() string { return c.address(apiServerHost) }

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// Server is the API server's URL.
func (c *Cluster) Server() string { return "https://" + c.apiServer() + ":6443" }

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

func (c *Cluster) nodes() []node {
	var all []node
	for i := 1; i <= c.Nodes; i++ {
		name, host := fmt.Sprintf("node%d", i), byte(nodeHost+i)
		all = append(all, node{
			name: name, ns: c.name() + "-" + name, address: c.address(host),
			address6: c.address6(host),
		})
	}
	return all
}
