package session

import (
	"context"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// pollPeers is how often the tunnel's connections are checked: the tunnel announces no changes.
const pollPeers = 250 * time.Millisecond

// WatchPeers keeps the tunnel's peers equal to the sessions and reconciles the sessions of laptops
// that connect and disconnect. It returns when ctx ends.
func (r *Reconciler) WatchPeers(ctx context.Context) error {
	tick := time.NewTicker(pollPeers)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var all detour.SessionList
		if err := r.List(ctx, &all); err != nil {
			continue
		}
		var peers []vif.Peer
		for key, s := range keyOwners(all.Items) {
			if len(s.Status.Addresses) == 0 || !compatible(s.Spec.ClientVersion, version.Version) {
				continue
			}
			peers = append(peers, vif.Peer{PublicKey: key, Addresses: ParseAddresses(s.Status.Addresses)})
			r.checkPeer(ctx, s, key)
		}
		if err := r.config.Tunnel.SetPeers(peers); err != nil {
			r.config.Log.Warn("setting the tunnel's peers failed", "err", err)
		}
	}
}

// checkPeer reconciles a session if its laptop has connected or disconnected.
func (r *Reconciler) checkPeer(ctx context.Context, s *detour.Session, key wgkey.Key) {
	now := r.config.Tunnel.Connected(key, r.config.StaleAfter)
	name := client.ObjectKeyFromObject(s)
	r.mu.Lock()
	before, known := r.connected[name]
	r.connected[name] = now
	r.mu.Unlock()
	if known && before == now && s.Status.Connected == now {
		return
	}
	if before && !now {
		r.config.Tunnel.ResetRelayed(key)
	}
	select {
	case r.changed <- event.GenericEvent{Object: s}:
	case <-ctx.Done():
	default: // the next poll tries again
	}
}
