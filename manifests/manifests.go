// Package manifests embeds the Helm chart, so that the detour binary can install it without other
// files.
package manifests

import "embed"

// Chart holds the chart's files in the directory chart.
//
//go:embed all:chart
var Chart embed.FS
