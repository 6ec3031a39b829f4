package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCommentsStandAboveTheirKeys(t *testing.T) {
	got := comments(`# The image.
image: a
# Two
# lines.
udp:
  # On or off.
  enabled: true
  port: 1
# Of nobody.
- x
plain: 1
`)
	require.Equal(t, map[string]string{"image": "The image.", "udp": "Two lines.", "udp.enabled": "On or off."}, got)
}

func TestKindOfASchema(t *testing.T) {
	for name, c := range map[string]struct {
		schema schema
		want   string
	}{
		"a type":          {schema: schema{Type: "boolean"}, want: "boolean"},
		"two types":       {schema: schema{Type: []any{"integer", "null"}}, want: "integer or null"},
		"a list":          {schema: schema{Type: "array", Items: &schema{Type: "string"}}, want: "list of string"},
		"an enumeration":  {schema: schema{Enum: []any{"a"}}, want: "string"},
		"a port":          {schema: schema{IntOrString: true}, want: "integer or string"},
		"nothing is said": {schema: schema{}, want: "any"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, c.schema.kind()) })
	}
}
