package spec

import (
	"testing"

	"github.com/stretchr/testify/assert"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

func TestMatchSurvivesTheConversionAndBack(t *testing.T) {
	spec := &detour.Match{
		User: "alice", Methods: []string{"GET"}, Path: "/a",
		Headers: []detour.ValueMatch{
			{Name: "x", Type: detour.MatchExact, Value: "1"},
			{Name: "y", Type: detour.MatchPresent},
		},
		Query: []detour.ValueMatch{{Name: "z", Type: detour.MatchRegex, Value: ".*"}},
	}
	assert.Equal(t, spec, ToAPI(FromAPI(spec)))
	assert.Nil(t, FromAPI(nil))
	assert.Nil(t, ToAPI(nil))
}
