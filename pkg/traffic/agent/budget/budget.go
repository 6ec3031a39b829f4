// Package budget bounds the memory that all connections of an agent share for one purpose, because
// the app's pod pays for it. Start with Budget.
package budget

import "sync/atomic"

// Budget is a number of bytes that many take a share of. It is safe for concurrent use.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// New returns a Budget of limit bytes.
func New(limit int64) *Budget { return &Budget{limit: limit} }

// Take takes n bytes and returns true, or takes nothing and returns false if fewer are left.
func (b *Budget) Take(n int) bool {
	if b.used.Add(int64(n)) > b.limit {
		b.Give(n)
		return false
	}
	return true
}

// Give gives n bytes back.
func (b *Budget) Give(n int) { b.used.Add(-int64(n)) }

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 { return b.used.Load() }
