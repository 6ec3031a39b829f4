package manager

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

// A laptop's packets leave from the manager's pod: a laptop must not reach what only that pod can.
func TestMayReach(t *testing.T) {
	for address, want := range map[string]bool{
		"10.96.0.10": true, "10.42.0.7": true, "192.168.1.20": true, "8.8.8.8": true,
		"fd00::1": true, "2001:db8::1": true,
		"127.0.0.1": false, "127.8.8.8": false, "::1": false,
		"169.254.169.254": false, "fe80::1": false, // a cloud's metadata service
		"224.0.0.251": false, "ff02::1": false, "0.0.0.0": false, "::": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::ffff:0.0.0.0": false,
	} {
		t.Run(address, func(t *testing.T) { assert.Equal(t, want, mayReach(netip.MustParseAddr(address))) })
	}
	assert.False(t, mayReach(netip.Addr{}))
}
