package wellknown_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/manifests"
	"github.com/detour-dev/detour/pkg/wellknown"
)

// The chart is YAML with placeholders, so the names and ports are repeated there by hand.
func TestChartUsesTheWellKnownNamesAndPorts(t *testing.T) {
	raw, err := fs.ReadFile(manifests.Chart, "chart/templates/manager.yaml")
	require.NoError(t, err)
	chart := string(raw)
	for _, c := range []struct {
		what string
		line string
	}{
		{what: "service and deployment", line: "name: " + wellknown.TrafficManager + "\n"},
		{what: "webhook configuration", line: "name: " + wellknown.Webhook + "\n"},
		{
			what: "service port of the tunnel",
			line: fmt.Sprintf("{name: %s, port: %d, targetPort: tunnel}", wellknown.TunnelPortName,
				wellknown.TunnelPort),
		},
		{
			what: "service port of the agents",
			line: fmt.Sprintf("{name: agent, port: %d, targetPort: agent}", wellknown.AgentPort),
		},
		{what: "metrics port", line: fmt.Sprintf("{name: metrics, containerPort: %d}", wellknown.MetricsPort)},
		{what: "tunnel port", line: fmt.Sprintf("{name: tunnel, containerPort: %d}", wellknown.TunnelPort)},
		{what: "agent port", line: fmt.Sprintf("{name: agent, containerPort: %d}", wellknown.AgentPort)},
		{what: "relay port", line: fmt.Sprintf("{name: relay, containerPort: %d}", wellknown.RelayPort)},
		{
			what: "WireGuard port",
			line: fmt.Sprintf("containerPort: %d\n              protocol: UDP", wellknown.WireGuardPort),
		},
		{what: "health port", line: fmt.Sprintf("{name: health, containerPort: %d}", wellknown.HealthPort)},
		{what: "webhook port", line: fmt.Sprintf("{name: webhook, containerPort: %d}", wellknown.WebhookPort)},
	} {
		t.Run(c.what, func(t *testing.T) { require.Contains(t, strings.ReplaceAll(chart, "\r", ""), c.line) })
	}
}
