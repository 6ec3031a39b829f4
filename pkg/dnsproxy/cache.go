package dnsproxy

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxTTL and maxNegativeTTL bound what a record says: the cluster changes while people work in it.
	maxTTL         = 5 * time.Minute
	maxNegativeTTL = 30 * time.Second
	// maxCached and maxCachedSize bound the cache's memory to 16 MB.
	maxCached     = 2048
	maxCachedSize = 8 << 10
)

// cache remembers what the cluster's DNS said, for as long as it said that it may be: each question less is a journey through the
// tunnel less. The answers of the resolver that was there before are not kept: it has its own cache, and knows when the laptop moves
// to another network. The zero value is empty.
type cache struct {
	mu  sync.Mutex
	all map[cacheKey]cached
}

type cacheKey struct {
	name        string
	kind, class uint16
	// Signatures asked for, and not checked: each makes another answer.
	do, cd bool
}

type cached struct {
	answer       *dns.Msg // never changed
	since, until time.Time
}

func keyOf(query *dns.Msg) cacheKey {
	q := query.Question[0]
	e := query.IsEdns0()
	return cacheKey{strings.ToLower(q.Name), q.Qtype, q.Qclass, e != nil && e.Do(), query.CheckingDisabled}
}

// get returns a copy with what is left of the records' time, or nil.
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

// put remembers an answer, unless it may not be.
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
		c.shrink(now)
	}
	c.all[keyOf(query)] = cached{answer.Copy(), now, now.Add(ttl)}
}

// shrink drops what is over, and if that is not enough any: the order of a map is as good as a dice.
func (c *cache) shrink(now time.Time) {
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

// lifetime is how long an answer may be remembered: as long as the shortest of its records; that something is not there, as long as the
// SOA record with it says (RFC 2308). Failures and parts of answers are not remembered.
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

// sections are all records of an answer, but what is not one.
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
