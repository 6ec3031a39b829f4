// Package tail names what a laptop and the traffic-manager agree on for `detour tail`: a gRPC
// service inside the VIF that streams the routed requests. The service itself is rpc/tail's
// TailService. Start from [Port].
package tail

// Port is the TCP port on the traffic-manager's VIF address where it serves the stream of routed
// requests.
const Port = 7475

// A laptop proves that it owns the key of its session: it sends the proof for ProofPurpose (see
// Key.Proof of package pkg/vif/wgkey) in the gRPC metadata under ProofMetadataKey.
const (
	ProofPurpose     = "tail"
	ProofMetadataKey = "detour-proof-bin"
)
