// Package manifests embeds the Helm chart, so that `detour install` needs nothing but the binary.
package manifests

import "embed"

// Chart is the chart's directory, under "chart".
//
//go:embed all:chart
var Chart embed.FS
