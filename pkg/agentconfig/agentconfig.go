// Package agentconfig is what the injector tells a traffic-agent, in one environment variable.
package agentconfig

import (
	"encoding/json"
	"fmt"
	"os"
)

const (
	// Env is the name of the variable; its value is JSON.
	Env = "DETOUR_AGENT_CONFIG"
	// TokenDir and TokenFile are where the pod's token for the traffic-manager is mounted.
	TokenDir  = "/var/run/secrets/detour.dev"
	TokenFile = TokenDir + "/token"
	// CertificatesDir is where the pod's own Secrets are mounted, by name, with which the agent may
	// look into TLS.
	CertificatesDir = "/var/run/secrets/detour.dev-certificates"
	// AttachedHeader is in the metadata of an attached agent's stream: its token may be the pod's
	// own.
	AttachedHeader = "detour-attached"
	// Audience is whom that token is for.
	Audience = "detour-traffic-manager"
	// HealthPort answers /readyz for the kubelet.
	HealthPort = 9899
	// UserID is the user the agent runs as.
	UserID = 7474
)

// Config is the agent's configuration.
type Config struct {
	Ports   []Port  `json:"ports"`
	Manager string  `json:"manager"` // host:port of the manager's agent API
	Server  string  `json:"server"`  // the name in the manager's certificate
	CA      string  `json:"ca"`      // PEM
	Aliases []Alias `json:"aliases,omitempty"`
	// Attached is set for an agent in an ephemeral container, which redirects its ports itself and
	// chooses its own.
	Attached *Attached `json:"attached,omitempty"`
}

// Attached is what an agent in an ephemeral container needs to know besides.
type Attached struct {
	Token string `json:"token"` // file
}

// Port is one app port that the agent stands in front of.
type Port struct {
	App   uint16 `json:"app"`
	Agent uint16 `json:"agent"`
	// Datagrams says that it is a port of UDP.
	Datagrams bool `json:"datagrams,omitempty"`
	// Redirect says that the init container sends what arrives for App to Agent.
	Redirect bool `json:"redirect,omitempty"`
	// Secret is the name of the Secret with the app's certificate, when the agent has it.
	Secret string `json:"secret,omitempty"`
	// Probed says that the kubelet asks the app over HTTP on this port of a running pod, which must
	// not be answered by a laptop.
	Probed bool `json:"probed,omitempty"`
}

// Alias is a port that leads to the app although its own port is redirected: the kubelet's probes
// use it.
type Alias struct {
	Alias uint16 `json:"alias"`
	App   uint16 `json:"app"`
}

// FromEnv reads the configuration.
func FromEnv() (Config, error) {
	var c Config
	if err := json.Unmarshal([]byte(os.Getenv(Env)), &c); err != nil {
		return c, fmt.Errorf("read %s: %w", Env, err)
	}
	return c, nil
}
