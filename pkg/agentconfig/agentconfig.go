// Package agentconfig is the configuration that the injecting webhook gives a traffic-agent, as
// JSON in one environment variable. Start from [Config].
package agentconfig

import (
	"encoding/json"
	"fmt"
	"os"
)

const (
	// Env is the name of the environment variable. Its value is a Config as JSON.
	Env = "DETOUR_AGENT_CONFIG"
	// TokenDir is where the pod's token for the traffic-manager is mounted, as TokenFile.
	TokenDir  = "/var/run/secrets/detour.dev"
	TokenFile = TokenDir + "/token"
	// CertificatesDir is where the Secrets of the pod's apps are mounted, each in a directory of
	// its name. With them the agent can look into TLS.
	CertificatesDir = "/var/run/secrets/detour.dev-certificates"
	// AttachedHeader is in the gRPC metadata of an attached agent, whose token may be the pod's
	// own.
	AttachedHeader = "detour-attached"
	// Audience is the audience of the token in TokenFile.
	Audience = "detour-traffic-manager"
	// HealthPort is where the agent answers /readyz for the kubelet.
	HealthPort = 9899
	// UserID is the user that the agent runs as.
	UserID = 7474
)

// Config is the configuration of an agent.
type Config struct {
	Ports   []Port  `json:"ports"`
	Manager string  `json:"manager"` // host:port of the manager's API for agents
	Server  string  `json:"server"`  // the name in the manager's certificate
	CA      string  `json:"ca"`      // PEM
	Aliases []Alias `json:"aliases,omitempty"`
	// Attached is set for an agent in an ephemeral container, which redirects its ports itself and
	// chooses its own.
	Attached *Attached `json:"attached,omitempty"`
}

// Attached is what an agent in an ephemeral container needs in addition.
type Attached struct {
	Token string `json:"token"` // the file with the token
}

// Port is one port of the app that the agent receives the traffic of.
type Port struct {
	App   uint16 `json:"app"`   // where the app listens
	Agent uint16 `json:"agent"` // where the agent listens
	// Datagrams is set for a UDP port.
	Datagrams bool `json:"datagrams,omitempty"`
	// Redirect is set if the init container redirects the traffic for App to Agent.
	Redirect bool `json:"redirect,omitempty"`
	// Secret is the name of the Secret with the app's certificate, if the agent has it.
	Secret string `json:"secret,omitempty"`
	// Probed is set if the kubelet probes the app over HTTP on this port of a running pod. A laptop
	// must not answer the probes.
	Probed bool `json:"probed,omitempty"`
}

// Alias is a port that leads to the app although the app's own port is redirected. The kubelet's
// probes use it.
type Alias struct {
	Alias uint16 `json:"alias"`
	App   uint16 `json:"app"`
}

// FromEnv reads the configuration from the environment variable.
func FromEnv() (Config, error) {
	var c Config
	if err := json.Unmarshal([]byte(os.Getenv(Env)), &c); err != nil {
		return c, fmt.Errorf("read %s: %w", Env, err)
	}
	return c, nil
}
