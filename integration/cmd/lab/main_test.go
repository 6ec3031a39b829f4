package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTableComparesTheMediansOfBothBuilds(t *testing.T) {
	half, quarter := 0.5, 0.25
	var results table
	for _, turn := range []struct {
		build int
		value float64
		ratio *float64
	}{
		{build: 0, value: 100, ratio: &half},
		{build: 1, value: 50, ratio: &quarter},
		{build: 0, value: 120, ratio: &half},
		{build: 1, value: 60, ratio: &quarter},
	} {
		results.add(turn.build, "out.udp", []figure{
			{Name: "connect.s", Unit: "s", Value: 1},
			{Name: "out.udp.rps16", Unit: "/s", Value: turn.value, Ratio: turn.ratio},
		})
	}
	var out strings.Builder
	require.NoError(t, results.print(&out))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 2, "rows that were not asked for are left out")
	want := []string{"out.udp.rps16", "/s", "110", "100-120", "55", "50-60", "0.500", "0.500"}
	require.Equal(t, want, strings.Fields(lines[1]))
}

func TestTableNeedsRows(t *testing.T) {
	require.ErrorContains(t, new(table).print(new(strings.Builder)), "no such rows")
}

func TestParseNeedsABuildAndRows(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		err  string
	}{
		"no build to compare with": {args: []string{"-rows", "out"}, err: "give both -a"},
		"no rows":                  {args: []string{"-a", "/tmp/before"}, err: "give both -a"},
		"no turns": {
			args: []string{"-a", "/tmp/before", "-rows", "out", "-turns", "0"}, err: "-turns is at least 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(c.args)
			require.ErrorContains(t, err, c.err)
		})
	}
}
