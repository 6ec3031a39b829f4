package overrides

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func TestParseNamesTheWrongFlag(t *testing.T) {
	for name, c := range map[string]struct {
		flags *daemonv1.NetworkOverrides
		err   string
	}{
		"nothing":       {},
		"a network":     {flags: &daemonv1.NetworkOverrides{AlsoProxy: []string{"10.0.0.0/8"}}},
		"not a network": {flags: &daemonv1.NetworkOverrides{AlsoProxy: []string{"10.0.0.0/99"}}, err: "--also-proxy"},
		"not a map":     {flags: &daemonv1.NetworkOverrides{Map: []string{"db"}}, err: "--map"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.flags)
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}

func TestMismatch(t *testing.T) {
	session := &daemonv1.NetworkOverrides{AlsoProxy: []string{"10.0.0.0/8"}, Map: []string{"db=10.0.0.1"}}
	for name, c := range map[string]struct {
		request *daemonv1.NetworkOverrides
		flags   []string
	}{
		"no flags":      {},
		"the same flag": {request: &daemonv1.NetworkOverrides{AlsoProxy: []string{"10.0.0.0/8"}}},
		"another value": {
			request: &daemonv1.NetworkOverrides{AlsoProxy: []string{"10.1.0.0/16"}},
			flags:   []string{"--also-proxy"},
		},
		"a flag it lacks": {
			request: &daemonv1.NetworkOverrides{NeverProxy: []string{"10.1.0.0/16"}},
			flags:   []string{"--never-proxy"},
		},
		"two other values": {
			request: &daemonv1.NetworkOverrides{Map: []string{"a=b"}, MapSubnet: []string{"auto"}},
			flags:   []string{"--map-subnet", "--map"},
		},
		"suffixes it lacks": {
			request: &daemonv1.NetworkOverrides{IncludeSuffix: []string{"a"}, ExcludeSuffix: []string{"b"}},
			flags:   []string{"--include-suffix", "--exclude-suffix"},
		},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.flags, Mismatch(c.request, session)) })
	}
}
