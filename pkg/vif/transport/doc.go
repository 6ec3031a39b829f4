// Package transport carries WireGuard's messages between a laptop and the hub, over streams and
// datagrams, and chooses the path of each message.
//
// A Wire carries messages to one other end: a StreamWire, or an address that a UDP socket sends to.
// The laptop's end is a PathSelector: it sends probes on each path and uses the best that answers.
// The hub's end is a Responder: it answers the probes, and lets WireGuard answer a laptop on the
// wire on which it last heard from it. Both give WireGuard a conn.Bind.
//
// A laptop whose path is a stream opens a second one beside it, the express stream, for the packets
// of flows that send little. Probes are sealed with a key that only the laptop and the hub have, so
// strangers neither learn nor move anything. The package knows nothing of interfaces and flows, and
// only reads the class mark of a message.
package transport
