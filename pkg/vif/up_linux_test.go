package vif_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/viftest"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// A caller that is given an error has nothing to close.
func TestUpLeavesNothingWhenItsContextHasEnded(t *testing.T) {
	key, err := wgkey.NewPrivate()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	viftest.OnLaptop(t, func() error {
		up, err := vif.Up(ctx, vif.Config{
			PrivateKey: key, PeerKey: key.Public(), Addresses: []netip.Addr{viftest.LaptopAddress}, InboundPort: viftest.InboundPort,
			Dial: func(context.Context) (vif.Stream, error) { return vif.Stream{}, errors.New("no route to the cluster") },
		})
		if up != nil {
			_ = up.Close()
			return errors.New("Up has returned an interface with its error")
		}
		if !errors.Is(err, context.Canceled) {
			return errors.New("Up has not returned the context's error")
		}
		return nil
	})
}
