package session

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// facts are all that the decision about a session depends on, apart from the time.
type facts struct {
	session *detour.Session // as it is stored
	manager managerFacts

	key      wgkey.Key
	keyErr   error           // the session's public key is not a key
	keyOwner *detour.Session // another session that owns the key, or nil

	addressed bool // the session's addresses are of the pool, one of each range
	assigned  bool // addresses were assigned: a session that has none found the pool full

	lastReceived time.Time // of the laptop's packets; zero when the manager has received none
	connected    bool

	cluster clusterFacts
}

// managerFacts stay the same for as long as the manager runs.
type managerFacts struct {
	pod       string
	publicKey string
	version   string
	started   time.Time
	ttl       time.Duration
}

// clusterFacts are what a session's status says about the cluster.
type clusterFacts struct {
	subnets, nodeAddresses, udpEndpoints []string
	dns                                  detour.DNS
}

// observe reads all facts about a session. It does not change anything in the cluster.
func (r *Reconciler) observe(ctx context.Context, s *detour.Session) (f facts, err error) {
	f = facts{session: s, manager: managerFacts{
		pod: r.config.PodName, publicKey: r.config.PublicKey.String(), version: version.Version,
		started: r.started, ttl: r.config.TTL,
	}}
	if f.key, f.keyErr = wgkey.Parse(s.Spec.PublicKey); f.keyErr != nil {
		return f, nil
	}
	var all detour.SessionList
	if err := r.List(ctx, &all); err != nil {
		return f, fmt.Errorf("list the sessions: %w", err)
	}
	// Whoever has only copied the key must not look alive because its owner is.
	if f.keyOwner = otherKeyOwner(all.Items, f.key, s.UID); f.keyOwner != nil {
		return f, nil
	}
	f.addressed = r.config.Pool.contains(ParseAddresses(s.Status.Addresses))
	f.lastReceived = r.config.Tunnel.LastReceived(f.key)
	f.connected = r.config.Tunnel.Connected(f.key, r.config.StaleAfter)
	f.cluster, err = r.observeCluster(ctx)
	return f, err
}

func (r *Reconciler) observeCluster(ctx context.Context) (f clusterFacts, err error) {
	if f.subnets, f.nodeAddresses, err = r.findNetworks(ctx); err != nil {
		return f, err
	}
	if f.dns, err = r.findDNS(ctx); err != nil {
		return f, err
	}
	f.udpEndpoints, err = r.findUDPEndpoints(ctx)
	return f, err
}

func (r *Reconciler) findDNS(ctx context.Context) (detour.DNS, error) {
	dns := detour.DNS{Domain: r.config.ClusterDomain}
	var services corev1.ServiceList
	err := r.List(ctx, &services, client.InNamespace("kube-system"), client.MatchingLabels{"k8s-app": "kube-dns"})
	if err != nil {
		return dns, fmt.Errorf("find the cluster's DNS: %w", err)
	}
	for _, s := range services.Items {
		for _, ip := range s.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone && ip != "" {
				dns.Servers = append(dns.Servers, ip)
			}
		}
	}
	return dns, nil
}
