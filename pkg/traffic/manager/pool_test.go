package manager

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func addresses(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

func TestParsePool(t *testing.T) {
	for name, c := range map[string]struct {
		cidrs []string
		own   []netip.Addr
		err   string
	}{
		"one family":              {[]string{"100.64.0.0/16", ""}, addresses("100.64.0.1"), ""},
		"two families":            {[]string{"100.64.0.0/16", "fd00:1::/64"}, addresses("100.64.0.1", "fd00:1::1"), ""},
		"IPv6 only":               {[]string{"", "fd00:1::/64"}, addresses("fd00:1::1"), ""},
		"an address of the range": {[]string{"100.64.3.9/16"}, addresses("100.64.0.1"), ""},
		"none":                    {[]string{"", ""}, nil, "there must be at least one session CIDR"},
		"not a range":             {[]string{"100.64.0.1"}, nil, "session CIDR: "},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := parsePool(c.cidrs...)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.own, p.own())
		})
	}
}

// Laptops get the lowest free address, never the network's, the manager's or the broadcast's.
func TestPoolNext(t *testing.T) {
	for name, c := range map[string]struct {
		cidrs []string
		taken []netip.Addr
		want  []netip.Addr
	}{
		"the first":               {[]string{"100.64.0.0/16"}, nil, addresses("100.64.0.2")},
		"the first of both":       {[]string{"100.64.0.0/16", "fd00::/64"}, nil, addresses("100.64.0.2", "fd00::2")},
		"the next":                {[]string{"100.64.0.0/16"}, addresses("100.64.0.2", "100.64.0.3"), addresses("100.64.0.4")},
		"a gap":                   {[]string{"100.64.0.0/16"}, addresses("100.64.0.2", "100.64.0.4"), addresses("100.64.0.3")},
		"in any order":            {[]string{"100.64.0.0/16"}, addresses("100.64.0.3", "100.64.0.2"), addresses("100.64.0.4")},
		"families go apart":       {[]string{"100.64.0.0/16", "fd00::/64"}, addresses("100.64.0.2", "fd00::2", "fd00::3"), addresses("100.64.0.3", "fd00::4")},
		"over a byte":             {[]string{"10.0.0.252/22"}, nil, addresses("10.0.0.2")},
		"the last":                {[]string{"100.64.0.0/30"}, nil, addresses("100.64.0.2")},
		"full":                    {[]string{"100.64.0.0/30"}, addresses("100.64.0.2"), nil},
		"no room at all":          {[]string{"100.64.0.0/31"}, nil, nil},
		"a single address":        {[]string{"100.64.0.0/32"}, nil, nil},
		"one family full is full": {[]string{"100.64.0.0/30", "fd00::/64"}, addresses("100.64.0.2"), nil},
		"IPv6 has no broadcast":   {[]string{"fd00::/126"}, addresses("fd00::2"), addresses("fd00::3")},
		"IPv6 full":               {[]string{"fd00::/126"}, addresses("fd00::2", "fd00::3"), nil},
		"the end of all IPv4":     {[]string{"255.255.255.252/30"}, addresses("255.255.255.254"), nil},
		"addresses of elsewhere":  {[]string{"100.64.0.0/16"}, addresses("192.168.0.2"), addresses("100.64.0.2")},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := parsePool(c.cidrs...)
			require.NoError(t, err)
			assert.Equal(t, c.want, p.next(c.taken))
		})
	}
}

// Until the pool is empty nobody gets what another has; what is given back is given out again.
func TestPoolNeverGivesTwice(t *testing.T) {
	p, err := parsePool("100.64.0.0/25")
	require.NoError(t, err)
	var taken []netip.Addr
	seen := map[netip.Addr]bool{p.own()[0]: true}
	for {
		next := p.next(taken)
		if next == nil {
			break
		}
		require.False(t, seen[next[0]], "%s is given twice", next[0])
		require.True(t, p.contains(next))
		seen[next[0]] = true
		taken = append(taken, next...)
	}
	assert.Len(t, taken, 128-3, "all but network, manager and broadcast")
	back := taken[40]
	assert.Equal(t, []netip.Addr{back}, p.next(append(taken[:40:40], taken[41:]...)))
}

// When the chart's ranges change, sessions with addresses of the old ones get new ones.
func TestPoolContains(t *testing.T) {
	p, err := parsePool("100.64.0.0/16", "fd00::/64")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		addresses []netip.Addr
		want      bool
	}{
		"its own":           {addresses("100.64.0.9", "fd00::9"), true},
		"none yet":          {nil, false},
		"one family absent": {addresses("100.64.0.9"), false},
		"one too many":      {addresses("100.64.0.9", "fd00::9", "fd00::a"), false},
		"of another range":  {addresses("100.65.0.9", "fd00::9"), false},
		"the wrong way":     {addresses("fd00::9", "100.64.0.9"), false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, p.contains(c.addresses)) })
	}
}

func TestParseAddresses(t *testing.T) {
	assert.Equal(t, addresses("100.64.0.2", "fd00::2"), parseAddresses([]string{"100.64.0.2", "", "not one", "100.64.0.2/32", "fd00::2"}))
	assert.Nil(t, parseAddresses(nil))
}

// A laptop's packets leave from the manager's pod: what only that pod can reach must stay out of reach.
func TestMayReach(t *testing.T) {
	for address, want := range map[string]bool{
		"10.96.0.10": true, "10.42.0.7": true, "192.168.1.20": true, "8.8.8.8": true, "fd00::1": true, "2001:db8::1": true,
		"127.0.0.1": false, "127.8.8.8": false, "::1": false,
		"169.254.169.254": false, "fe80::1": false, // a cloud's metadata
		"224.0.0.251": false, "ff02::1": false, "0.0.0.0": false, "::": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::ffff:0.0.0.0": false,
	} {
		t.Run(address, func(t *testing.T) { assert.Equal(t, want, mayReach(netip.MustParseAddr(address))) })
	}
	assert.False(t, mayReach(netip.Addr{}))
}
