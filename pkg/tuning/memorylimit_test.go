package tuning

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestMemoryLimitFollowsTheLiveHeap(t *testing.T) {
	for name, c := range map[string]struct {
		live uint64
		want int64
	}{
		"an empty heap has the smallest limit": {live: 0, want: 22 << 20},
		"a small heap has the smallest limit":  {live: 4 << 20, want: 22 << 20},
		"a medium heap has room for garbage":   {live: 20 << 20, want: 41 << 20},
		"a large heap has room for garbage":    {live: 100 << 20, want: 161 << 20},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, limitFor(c.live)) })
	}
}
