// Package packet reads and changes single IP packets: it finds the transport header (Transport),
// cuts large packets into segments (Segmenter), and carries a flow's class past WireGuard's
// encryption (SetClassMark, IsBulk). It keeps no state and knows nothing of interfaces or tunnels.
package packet
