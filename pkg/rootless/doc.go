// Package rootless is detour's mode for ordinary users on Linux. A rootless session keeps the
// cluster's network in user, network and mount namespaces of its own, and leaves the laptop's
// network alone.
//
// New makes the namespaces: it starts a helper process (RunHelper) that is alone in them and opens
// there what the daemon asks for. The daemon, with WireGuard, stays outside, on the host's network.
// Namespace.OpenTUN gives the VIF its interface inside; packets that are not for the cluster end in
// a network stack of the daemon's, which forwards them with the host's sockets (egress.go), so that
// programs inside still reach the Internet. Exec runs a command inside, and otherwise as if the
// shell had started it: with the caller's user, directory, terminal and signals.
//
// Start reading at Namespace.
package rootless

// HelperCommand is the hidden command of detour that calls RunHelper with file descriptor 3.
const HelperCommand = "netns-helper"
