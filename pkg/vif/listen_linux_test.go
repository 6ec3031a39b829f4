package vif_test

import (
	"io"
	"net/netip"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/viftest"
)

// The hub serves laptops on its own address, and knows which laptop a connection comes from. It
// still refuses its other ports.
func TestHubListens(t *testing.T) {
	hub, _, _ := viftest.Pair(t)
	at := netip.AddrPortFrom(viftest.HubAddress, 7475)
	l, err := hub.Listen(at)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	c, err := viftest.Dial("tcp", at.String())
	require.NoError(t, err)
	defer c.Close()
	served, err := l.Accept()
	require.NoError(t, err)
	defer served.Close()
	assert.Equal(t, viftest.LaptopAddress, netip.MustParseAddrPort(served.RemoteAddr().String()).Addr())
	_, err = io.WriteString(served, "hello")
	require.NoError(t, err)
	b := make([]byte, 5)
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	_, err = viftest.Dial("tcp", netip.AddrPortFrom(viftest.HubAddress, 7476).String())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
