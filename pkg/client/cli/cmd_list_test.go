package cli

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// A script reads [] and not null.
func TestListOfNothingIsAnEmptyArray(t *testing.T) {
	assert.Equal(t, "[]\n", string(printed(t, "json", rowsOf(nil), nil)))
}
