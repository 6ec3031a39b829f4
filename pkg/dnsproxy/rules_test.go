package dnsproxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/remap"
)

// data is what an answer says, without names and times.
func data(m *dns.Msg) string {
	var all []string
	for _, rr := range m.Answer {
		all = append(all, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(all, " ")
}

func TestRules(t *testing.T) {
	const cluster, upstream, nobody = "cluster", "upstream", ""
	rules, err := ParseRules([]string{".corp.example.com", "local.test"}, []string{"example.com", "*.Shop"}, []string{
		"db.example.org=10.1.2.3",
		"six.example.org=fd00::7",
		"alias.example.org=catalog.shop.svc",
		"short=10.1.2.4",
		"outside.shop.svc.cluster.local=example.com",
		"gone.example.org=absent.shop.svc",
	})
	require.NoError(t, err)
	for _, c := range []struct {
		name  string
		kind  uint16
		want  string
		rcode int
		by    string
		asked string
	}{
		{"git.corp.example.com.", dns.TypeA, "10.9.9.9", 0, cluster, "git.corp.example.com."},
		{"GIT.Corp.example.com.", dns.TypeA, "10.9.9.9", 0, cluster, "git.corp.example.com."},
		{"corp.example.com.", dns.TypeA, "", dns.RcodeNameError, cluster, "corp.example.com."},
		{"notcorp.example.com.", dns.TypeA, "", dns.RcodeNameError, upstream, "notcorp.example.com."},
		{"example.com.", dns.TypeA, "192.0.2.1", 0, upstream, "example.com."},
		// excluded, whatever the cluster has
		{"catalog.shop.", dns.TypeA, "", dns.RcodeNameError, upstream, "catalog.shop."},
		{"catalog.shop.svc.cluster.local.", dns.TypeA, "10.96.0.5", 0, cluster, "catalog.shop.svc.cluster.local."},

		{"db.example.org.", dns.TypeA, "10.1.2.3", 0, nobody, ""},
		{"DB.example.org.", dns.TypeA, "10.1.2.3", 0, nobody, ""},
		{"db.example.org.", dns.TypeAAAA, "", 0, nobody, ""},
		{"db.example.org.", dns.TypeMX, "", 0, nobody, ""},
		{"six.example.org.", dns.TypeAAAA, "fd00::7", 0, nobody, ""},
		{"six.example.org.", dns.TypeA, "", 0, nobody, ""},
		{"x.db.example.org.", dns.TypeA, "", dns.RcodeNameError, upstream, "x.db.example.org."},
		{"short.", dns.TypeA, "10.1.2.4", 0, nobody, ""},
		{"short.shop.svc.cluster.local.", dns.TypeA, "10.1.2.4", 0, nobody, ""}, // with what a search path makes of it
		{"short.svc.cluster.local.", dns.TypeA, "10.1.2.4", 0, nobody, ""},
		{
			name:  "short.default.svc.cluster.local.",
			kind:  dns.TypeA,
			rcode: dns.RcodeNameError,
			by:    cluster,
			asked: "short.default.svc.cluster.local.",
		},
		{"alias.example.org.", dns.TypeA, "catalog.shop.svc. 10.96.0.5", 0, cluster, "catalog.shop.svc.cluster.local."},
		{"alias.example.org.", dns.TypeAAAA, "catalog.shop.svc.", 0, cluster, "catalog.shop.svc.cluster.local."},
		{"alias.example.org.", dns.TypeCNAME, "catalog.shop.svc.", 0, nobody, ""},
		{"outside.shop.svc.cluster.local.", dns.TypeA, "example.com. 192.0.2.1", 0, upstream, "example.com."},
		{
			name:  "gone.example.org.",
			kind:  dns.TypeA,
			want:  "absent.shop.svc.",
			rcode: dns.RcodeNameError,
			by:    cluster,
			asked: "absent.shop.svc.cluster.local.",
		},
	} {
		t.Run(c.name+" "+dns.TypeToString[c.kind], func(t *testing.T) {
			answers := map[string]string{
				"git.corp.example.com.":           "A 10.9.9.9",
				"catalog.shop.svc.cluster.local.": "A 10.96.0.5",
				"shop.svc.cluster.local.":         "",
				"default.svc.cluster.local.":      "",
			}
			servers := map[string]*server{cluster: newServer(t, zone(t, answers)), upstream: newUpstream(t)}
			p := startWith(t, Config{
				Cluster:  []string{servers[cluster].address},
				Upstream: []string{servers[upstream].address},
				Rules:    rules,
			})
			answer := resolve(t, p, "udp", c.name, c.kind)
			assert.Equal(t, dns.RcodeToString[c.rcode], dns.RcodeToString[answer.Rcode])
			assert.Equal(t, c.want, data(answer))
			if len(answer.Answer) > 0 {
				assert.Equal(t, c.name, answer.Answer[0].Header().Name)
			}
			for who, s := range servers {
				if who == c.by {
					assert.Equal(t, 1, s.wasAsked(c.asked), "%s was asked %v", who, s.questions())
				} else {
					assert.Empty(t, s.questions(), "%s has no business with it", who)
				}
			}
		})
	}
}

func TestParseRules(t *testing.T) {
	for _, c := range []struct {
		include, exclude, maps []string
		fails                  string
	}{
		{include: []string{"."}, fails: "--include-suffix . is not a domain suffix"},
		{exclude: []string{""}, fails: "--exclude-suffix  is not a domain suffix"},
		{exclude: []string{"a..b"}, fails: "--exclude-suffix a..b is not a domain suffix"},
		{maps: []string{"db"}, fails: "--map db is not NAME=TARGET"},
		{maps: []string{"=10.1.2.3"}, fails: "--map =10.1.2.3 is not NAME=TARGET"},
		{maps: []string{"a=b=c"}, fails: "--map a=b=c is not NAME=TARGET"},
		{maps: []string{"db=http://x/"}, fails: "is not NAME=TARGET"},
	} {
		_, err := ParseRules(c.include, c.exclude, c.maps)
		assert.ErrorContains(t, err, c.fails)
	}
}

// Programs get the addresses at which the laptop sees the cluster, and may ask whose they are.
func TestRemapped(t *testing.T) {
	cluster := newServer(t, zone(t, map[string]string{
		"catalog.shop.svc.cluster.local.": "A 10.96.0.5",
		"six.shop.svc.cluster.local.":     "AAAA fd00::5",
		"db-0.db.shop.svc.cluster.local.": "A 10.42.0.9",
		"shop.svc.cluster.local.":         "",
		"5.0.96.10.in-addr.arpa.":         "PTR catalog.shop.svc.cluster.local.",
	}))
	upstream := newServer(t, zone(t, map[string]string{
		"lan.example.com.":        "A 10.96.0.5",
		"5.0.96.10.in-addr.arpa.": "PTR lan.example.com.",
	}))
	p := startWith(t, Config{Cluster: []string{cluster.address}, Upstream: []string{upstream.address}})
	p.SetNetworks([]netip.Prefix{
		netip.MustParsePrefix("198.19.0.0/16"),
		netip.MustParsePrefix("10.42.0.0/16"),
		netip.MustParsePrefix("fd77::/64"),
	}, remap.Table{
		{Real: netip.MustParsePrefix("10.96.0.0/16"), Seen: netip.MustParsePrefix("198.19.0.0/16")},
		{Real: netip.MustParsePrefix("fd00::/64"), Seen: netip.MustParsePrefix("fd77::/64")},
	})
	for range 2 { // once from the cluster, once from what is remembered
		assert.Equal(t, "198.19.0.5", data(resolve(t, p, "udp", "catalog.shop.", dns.TypeA)))
		assert.Equal(t, "fd77::5", data(resolve(t, p, "udp", "six.shop.", dns.TypeAAAA)))
		assert.Equal(t, "10.42.0.9", data(resolve(t, p, "udp", "db-0.db.shop.", dns.TypeA)))
		assert.Equal(t, "catalog.shop.svc.cluster.local.",
			data(resolve(t, p, "udp", "5.0.19.198.in-addr.arpa.", dns.TypePTR)))
	}
	assert.Equal(t, "10.96.0.5", data(resolve(t, p, "udp", "lan.example.com.", dns.TypeA)),
		"the laptop's own network is where it is")
	assert.Equal(t, "lan.example.com.", data(resolve(t, p, "udp", "5.0.96.10.in-addr.arpa.", dns.TypePTR)))
}
