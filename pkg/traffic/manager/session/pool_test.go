package session

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
		"none": {
			cidrs: []string{"", ""}, err: "no session CIDR is given: set --session-cidr or --session-cidr6",
		},
		"not a range": {cidrs: []string{"100.64.0.1"}, err: "session CIDR: "},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePool(c.cidrs...)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.own, p.ManagerAddresses())
		})
	}
}

// Laptops get the lowest free address, never the network's, the manager's or the broadcast address.
func TestPoolNext(t *testing.T) {
	for name, c := range map[string]struct {
		cidrs []string
		taken []netip.Addr
		want  []netip.Addr
	}{
		"the first": {cidrs: []string{"100.64.0.0/16"}, want: addresses("100.64.0.2")},
		"the first of both": {
			cidrs: []string{"100.64.0.0/16", "fd00::/64"}, want: addresses("100.64.0.2", "fd00::2"),
		},
		"the next": {
			cidrs: []string{"100.64.0.0/16"}, taken: addresses("100.64.0.2", "100.64.0.3"),
			want: addresses("100.64.0.4"),
		},
		"a gap": {
			cidrs: []string{"100.64.0.0/16"}, taken: addresses("100.64.0.2", "100.64.0.4"),
			want: addresses("100.64.0.3"),
		},
		"in any order": {
			cidrs: []string{"100.64.0.0/16"}, taken: addresses("100.64.0.3", "100.64.0.2"),
			want: addresses("100.64.0.4"),
		},
		"families are independent": {
			cidrs: []string{"100.64.0.0/16", "fd00::/64"}, taken: addresses("100.64.0.2", "fd00::2", "fd00::3"),
			want: addresses("100.64.0.3", "fd00::4"),
		},
		"a mask within a byte": {cidrs: []string{"10.0.0.252/22"}, want: addresses("10.0.0.2")},
		"the last":             {cidrs: []string{"100.64.0.0/30"}, want: addresses("100.64.0.2")},
		"full":                 {cidrs: []string{"100.64.0.0/30"}, taken: addresses("100.64.0.2")},
		"a range without room": {cidrs: []string{"100.64.0.0/31"}},
		"a single address":     {cidrs: []string{"100.64.0.0/32"}},
		"one family full is full": {
			cidrs: []string{"100.64.0.0/30", "fd00::/64"}, taken: addresses("100.64.0.2"),
		},
		"IPv6 has no broadcast": {
			cidrs: []string{"fd00::/126"}, taken: addresses("fd00::2"), want: addresses("fd00::3"),
		},
		"IPv6 full": {cidrs: []string{"fd00::/126"}, taken: addresses("fd00::2", "fd00::3")},
		"the last IPv4 range": {
			cidrs: []string{"255.255.255.252/30"}, taken: addresses("255.255.255.254"),
		},
		"taken addresses of another range": {
			cidrs: []string{"100.64.0.0/16"}, taken: addresses("192.168.0.2"), want: addresses("100.64.0.2"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePool(c.cidrs...)
			require.NoError(t, err)
			assert.Equal(t, c.want, p.next(c.taken))
		})
	}
}

// No two laptops get the same address. An address that is free again is given out again.
func TestPoolNeverGivesAnAddressTwice(t *testing.T) {
	p, err := ParsePool("100.64.0.0/25")
	require.NoError(t, err)
	var taken []netip.Addr
	seen := map[netip.Addr]bool{p.ManagerAddresses()[0]: true}
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

// When the chart's ranges change, sessions with addresses of the old ranges get new ones.
func TestPoolContains(t *testing.T) {
	p, err := ParsePool("100.64.0.0/16", "fd00::/64")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		addresses []netip.Addr
		want      bool
	}{
		"own addresses":     {addresses: addresses("100.64.0.9", "fd00::9"), want: true},
		"none yet":          {want: false},
		"one family absent": {addresses: addresses("100.64.0.9"), want: false},
		"one too many":      {addresses: addresses("100.64.0.9", "fd00::9", "fd00::a"), want: false},
		"of another range":  {addresses: addresses("100.65.0.9", "fd00::9"), want: false},
		"wrong order":       {addresses: addresses("fd00::9", "100.64.0.9"), want: false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, p.contains(c.addresses)) })
	}
}

func TestParseAddresses(t *testing.T) {
	assert.Equal(t, addresses("100.64.0.2", "fd00::2"),
		ParseAddresses([]string{"100.64.0.2", "", "not one", "100.64.0.2/32", "fd00::2"}))
	assert.Nil(t, ParseAddresses(nil))
}
