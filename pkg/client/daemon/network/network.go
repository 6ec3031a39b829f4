// Package network is a session's network on the laptop: the VIF with its routes, the DNS proxy, and
// in rootless mode the namespaces they are in. Start with Up.
//
// Network.Close undoes all of it, last change first. Closing the VIF removes the interface, and the
// kernel removes the routes with it. System.Restore of package dnsproxy restores the resolver, and
// Namespaces.Close ends the namespaces. After a killed daemon only the resolver is left: the next
// detour command restores it (restoreResolver of package cli).
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/overrides"
	"github.com/detour-dev/detour/pkg/client/routes"
	"github.com/detour-dev/detour/pkg/client/tunnel"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/tail"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

const (
	tunnelTimeout = 20 * time.Second
	// rttTimeout bounds the measurement of a round trip.
	rttTimeout = time.Second
)

// Config says what Up makes. All fields but Namespaces are required.
type Config struct {
	Paths ipc.Paths
	// Cluster is the access to the API server, without timeouts.
	Cluster *rest.Config
	// Namespace is the connected namespace, ManagerNamespace that of the traffic-manager.
	Namespace, ManagerNamespace string
	// Status is that of the Session object. It has the traffic-manager's key and the addresses.
	Status    detour.SessionStatus
	Key       wgkey.Key
	Overrides overrides.Overrides
	// Transport is the value of --transport.
	Transport string
	// HostLoopback lets processes in the namespaces reach the laptop's 127.0.0.1.
	HostLoopback bool
	// Namespaces are those of rootless mode. The network does not own them: they outlive it. nil
	// means that the network is the laptop's own.
	Namespaces *Namespaces
	// ManagerPod returns the name of the traffic-manager's present pod.
	ManagerPod func(context.Context) (string, error)
	Progress   func(string)
	Log        *slog.Logger
}

// Network is a live network. Its methods may be called concurrently.
type Network struct {
	config    Config
	addresses []netip.Addr // of the laptop in the tunnel
	apiServer []netip.Addr
	place     dnsproxy.Network // where local ports and the cluster are reached
	hub       netip.Addr       // the traffic-manager's address in the tunnel, as the laptop sees it
	proof     []byte           // shows the traffic-manager who asks inside the tunnel
	vif       *vif.Interface
	dns       *dnsproxy.Proxy // nil if the cluster's DNS is unknown
	system    dnsproxy.System

	// mu guards the fields below.
	mu          sync.Mutex
	overrides   routes.Overrides // a plan adds the mappings that it has chosen
	plan        routes.Plan
	unreachable error    // networks of the cluster that collide with the laptop's since the session was made
	cleanup     []func() // Close runs them, last to first
}

// Snapshot is the state of a network at one moment.
type Snapshot struct {
	Interface string
	Alive     bool
	// Path is the tunnel's present path; its Transport is empty if there is none.
	Path transport.Path
	// TunnelProblem is why there is no tunnel, Unreachable why a part of the cluster cannot be
	// reached.
	TunnelProblem, Unreachable error
	// Mapped are CIDR=CIDR: networks of the cluster, and where the laptop sees them.
	Mapped []string
}

// Up brings up the VIF, waits for the tunnel, and then makes the cluster's names known. The caller
// ends the network with Close. After an error nothing is left of it.
func Up(ctx context.Context, c Config) (_ *Network, err error) {
	n := &Network{config: c, overrides: c.Overrides.Routes, place: c.Namespaces.place()}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	managerKey, err := wgkey.Parse(c.Status.ManagerPublicKey)
	if err != nil {
		return nil, fmt.Errorf("the traffic-manager's key: %w", err)
	}
	for _, text := range c.Status.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("the laptop's address: %w", err)
		}
		n.addresses = append(n.addresses, a)
	}
	if n.apiServer, err = serverAddresses(ctx, c.Cluster); err != nil {
		return nil, err
	}
	if n.proof, err = c.Key.Proof(managerKey, tail.ProofPurpose); err != nil {
		return nil, err
	}
	if err := n.planRoutes(ctx); err != nil {
		return nil, err
	}
	for _, text := range c.Status.Subnets {
		if p, err := netip.ParsePrefix(text); err == nil && p.IsSingleIP() && p.Addr().Is4() {
			n.hub = n.plan.Remap.Seen(p.Addr())
		}
	}
	if err := n.openTunnel(ctx, managerKey); err != nil {
		return nil, err
	}
	n.OfferDirect(ctx, c.Status.UDPEndpoints)
	if err := n.startDNS(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// openTunnel brings up the VIF and waits for the first answer of the traffic-manager.
func (n *Network) openTunnel(ctx context.Context, managerKey wgkey.Key) error {
	c := n.config
	dialer, err := tunnel.New(c.Cluster, c.ManagerNamespace, c.Transport, c.ManagerPod)
	if err != nil {
		return err
	}
	n.onClose(dialer.Close)
	c.Progress("opening the tunnel through the API server")
	config := vif.Config{
		PrivateKey: c.Key, PeerKey: managerKey, Addresses: n.addresses, Routes: n.plan.Routes, Remap: n.plan.Remap,
		InboundPort: relay.LaptopPort, Dial: dialer.Open, Log: c.Log,
	}
	if c.Namespaces != nil {
		config.OpenTUN = c.Namespaces.OpenTUN(c.HostLoopback)
	}
	up, err := vif.Up(ctx, config)
	if err != nil {
		return err
	}
	n.vif = up
	n.onClose(func() {
		if err := up.Close(); err != nil {
			c.Log.Warn("closing the VIF failed", "err", err)
		}
	})
	waiting, cancel := context.WithTimeout(ctx, tunnelTimeout)
	defer cancel()
	if err := up.Ready(waiting); err != nil {
		if errors.Is(err, tunnel.ErrNotInstalled) {
			return tunnel.ErrNotInstalled
		}
		return explain.Error(err, "open the tunnel")
	}
	return nil
}

func (n *Network) onClose(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cleanup = append(n.cleanup, f)
}

// Close restores the laptop's network configuration, last change first. It may be called again.
func (n *Network) Close() {
	n.mu.Lock()
	cleanup := n.cleanup
	n.cleanup = nil
	n.mu.Unlock()
	for _, f := range slices.Backward(cleanup) {
		f()
	}
}

// Snapshot returns the network's state.
func (n *Network) Snapshot() Snapshot {
	s := Snapshot{Interface: n.vif.Name(), Alive: n.vif.Alive(), Path: n.vif.Path(), TunnelProblem: n.vif.Problem()}
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Unreachable = n.unreachable
	for _, p := range n.plan.Remap {
		s.Mapped = append(s.Mapped, p.String())
	}
	return s
}

// RTT measures a round trip to the traffic-manager through the tunnel; 0 means unknown.
func (n *Network) RTT(ctx context.Context) time.Duration {
	if !n.hub.IsValid() {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, rttTimeout)
	defer cancel()
	rtt, err := vif.RTT(ctx, n.place.Dial, n.hub)
	if err != nil {
		return 0
	}
	return rtt
}

// Alive reports whether the tunnel is alive.
func (n *Network) Alive() bool { return n.vif.Alive() }

// LastReceived returns when the tunnel last received a message of the traffic-manager.
func (n *Network) LastReceived() time.Time { return n.vif.LastReceived() }

// Addresses returns the laptop's addresses in the tunnel.
func (n *Network) Addresses() []netip.Addr { return n.addresses }

// Place returns where local processes listen and the cluster is reached: the laptop itself, or the
// namespaces.
func (n *Network) Place() dnsproxy.Network { return n.place }

// Hub returns the traffic-manager's address in the tunnel, if it is known, and the proof of who
// asks there.
func (n *Network) Hub() (address netip.Addr, proof []byte) { return n.hub, n.proof }
