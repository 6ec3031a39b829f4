package report

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"go.uber.org/goleak"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPathOfLeavesOutSecrets(t *testing.T) {
	for target, want := range map[string]string{
		"/a?b=c": "/a", "/a#b": "/a", "*": "*",
		"http://user:secret@host/a/b?c": "/a/b", "http://host": "/",
		"/x://y": "/x://y", "/\xff\x9b": "/�", "": "",
	} {
		assert.Equal(t, want, pathOf(target), target)
	}
}

// Requests beyond the limit are counted and not kept.
func TestReportIsBounded(t *testing.T) {
	r := New()
	for range MaxRouted + 7 {
		r.Add(&agentv1.Routed{})
	}
	m, _ := r.Take(time.Now())
	assert.Len(t, m.Routed, MaxRouted)
	assert.Equal(t, uint64(7), m.Missed)
	m, _ = r.Take(time.Now())
	assert.Nil(t, m)
}

// Each manager gets the counts of all dropped copies, and none gets them more often than it can
// write them to a status.
func TestDroppedCopiesAreReported(t *testing.T) {
	r := New()
	now := time.Now()
	r.Drop("tap", 2)
	m, later := r.Take(now)
	assert.Equal(t, map[string]uint64{"tap": 2}, m.Dropped)
	assert.False(t, later)
	r.Drop("tap", 1)
	m, later = r.Take(now.Add(DroppedInterval / 2))
	assert.Nil(t, m)
	assert.True(t, later)
	m, _ = r.Take(now.Add(DroppedInterval))
	assert.Equal(t, map[string]uint64{"tap": 3}, m.Dropped)

	sent := make(chan *agentv1.Report)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx, func(m *agentv1.Report) error { sent <- m; return nil }) }()
	assert.Equal(t, map[string]uint64{"tap": 3}, (<-sent).Dropped, "of a new connection")
	cancel()
	<-done
}
