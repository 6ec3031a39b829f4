// Package agents is the traffic-manager's side of the traffic-agents: it authenticates them, sends
// each one the intercepts that apply to its pod, and records what they confirm and report.
//
// Start with Registry. The intercept reconciler calls Activate and Deactivate; each connected agent
// then receives a new configuration with a higher generation, and Confirmed reports whether the
// agent has applied it. Everything here is in memory: an agent that loses its manager connects
// again and acknowledges again.
package agents
