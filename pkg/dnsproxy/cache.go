package dnsproxy

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxTTL and maxNegativeTTL bound how long an answer is cached, whatever its records say: the
	// cluster changes while people work in it.
	maxTTL         = 5 * time.Minute
	maxNegativeTTL = 30 * time.Second
	// maxCached answers of at most maxCachedSize bytes bound the cache's memory to 16 MB.
	maxCached     = 2048
	maxCachedSize = 8 << 10
)

// cache holds answers of the cluster's DNS for as long as their records allow. Each answer from the
// cache saves a round trip through the tunnel. The proxy does not cache answers of the previous
// resolvers: they have caches, and they notice when the laptop moves to another network. The zero
// value is an empty cache.
type cache struct {
	// mu guards the fields below.
	mu  sync.Mutex
	all map[cacheKey]cached
}

type cacheKey struct {
	name        string
	kind, class uint16
	// do and cd are the DNSSEC bits of the query. Each changes the answer.
	do, cd bool
}

type cached struct {
	answer       *dns.Msg // never changes
	since, until time.Time
}

func keyOf(query *dns.Msg) cacheKey {
	q := query.Question[0]
	e := query.IsEdns0()
	return cacheKey{
		name: strings.ToLower(q.Name), kind: q.Qtype, class: q.Qclass,
		do: e != nil && e.Do(), cd: query.CheckingDisabled,
	}
}

// get returns a copy of a cached answer with the remaining TTLs, or nil.
func (c *cache) get(query *dns.Msg) *dns.Msg {
	c.mu.Lock()
	entry, ok := c.all[keyOf(query)]
	c.mu.Unlock()
	now := time.Now()
	if !ok || !now.Before(entry.until) {
		return nil
	}
	answer := entry.answer.Copy()
	age := uint32(now.Sub(entry.since) / time.Second)
	for _, rr := range sections(answer) {
		rr.Header().Ttl -= min(age, rr.Header().Ttl)
	}
	return answer
}

// put caches an answer if that is allowed. It copies the answer.
func (c *cache) put(query, answer *dns.Msg) {
	ttl := lifetime(answer)
	if ttl <= 0 || answer.Len() > maxCachedSize {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[cacheKey]cached{}
	}
	if len(c.all) >= maxCached {
		c.shrinkLocked(now)
	}
	c.all[keyOf(query)] = cached{answer: answer.Copy(), since: now, until: now.Add(ttl)}
}

// shrinkLocked drops the answers that have expired. If that is not enough it drops others, in the
// map's random order, until a quarter of the cache is free.
func (c *cache) shrinkLocked(now time.Time) {
	for k, e := range c.all {
		if !now.Before(e.until) {
			delete(c.all, k)
		}
	}
	for k := range c.all {
		if len(c.all) < maxCached*3/4 {
			return
		}
		delete(c.all, k)
	}
}

// lifetime returns how long an answer may be cached: as long as the shortest TTL of its records,
// and a negative answer as long as its SOA record says (RFC 2308). It returns 0 for failures and
// for truncated answers.
func lifetime(answer *dns.Msg) time.Duration {
	if answer.Truncated || answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return 0
	}
	ttl := maxTTL
	for _, rr := range sections(answer) {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if answer.Rcode == dns.RcodeSuccess && len(answer.Answer) > 0 {
		return ttl
	}
	for _, rr := range answer.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(ttl, time.Duration(soa.Minttl)*time.Second, maxNegativeTTL)
		}
	}
	return 0
}

// sections returns all records of a message except the OPT pseudo-record.
func sections(m *dns.Msg) (all []dns.RR) {
	for _, s := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range s {
			if rr.Header().Rrtype != dns.TypeOPT {
				all = append(all, rr)
			}
		}
	}
	return all
}
