package agent

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// A small agent is held small, and one with much to do has room for its garbage.
func TestLimit(t *testing.T) {
	for live, want := range map[uint64]int64{0: 22 << 20, 4 << 20: 22 << 20, 20 << 20: 41 << 20, 100 << 20: 161 << 20} {
		assert.Equal(t, want, limit(live), "%d bytes live", live)
	}
}
