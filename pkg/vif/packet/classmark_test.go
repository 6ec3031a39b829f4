package packet

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"
)

// A message that WireGuard did not make of a packet is never bulk, whatever its buffer held before.
func TestOnlyMarkedMessagesAreBulk(t *testing.T) {
	buffer := make([]byte, device.MaxMessageSize)
	buffer[len(buffer)-1] = bulkMark
	require.True(t, IsBulk(buffer[:1000]))
	require.False(t, IsBulk(buffer[:device.MessageKeepaliveSize]), "a keepalive")
	require.False(t, IsBulk(buffer), "no room for a mark")
	require.False(t, IsBulk(buffer[:1000:1000]), "another buffer")
	require.False(t, IsBulk(make([]byte, device.MessageInitiationSize)))
	buffer[len(buffer)-1] = 0
	require.False(t, IsBulk(buffer[:1000]))
}
