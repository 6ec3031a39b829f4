// Package wellknown holds the names and ports of an installation of detour in a cluster. The Helm
// chart in manifests/chart creates the objects under these names, the traffic-manager serves on
// these ports, and the laptop looks for both. A test compares them with the rendered chart.
package wellknown

const (
	// TrafficManager is the name of the traffic-manager's Service and Deployment, of its Lease and
	// of the Helm release.
	TrafficManager = "traffic-manager"
	// KeysSecret is the Secret that holds the traffic-manager's WireGuard key and its certificate
	// authority. The traffic-manager creates it, so Helm does not remove it.
	KeysSecret = "traffic-manager-keys"
	// Webhook is the MutatingWebhookConfiguration that adds the traffic-agent to new pods.
	Webhook = "detour-traffic-agent"
	// TunnelPortName is the name of the Service port that carries the tunnel through the API
	// server's service proxy.
	TunnelPortName = "tunnel"
)

// The TCP and UDP ports of the traffic-manager's pod.
const (
	MetricsPort   = 8080 // HTTP: Prometheus metrics
	TunnelPort    = 8081 // HTTP/1.1 upgrade: WireGuard messages of the laptops
	AgentPort     = 8082 // gRPC with TLS: the traffic-agents' control connection
	RelayPort     = 8083 // TLS: connections that the traffic-agents relay to laptops
	WireGuardPort = 8084 // UDP: WireGuard messages of the laptops
	HealthPort    = 8180 // HTTP: readiness and liveness of the traffic-manager
	WebhookPort   = 9443 // HTTPS: the webhook that adds the traffic-agent to new pods
)
