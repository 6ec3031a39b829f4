// Package netx holds what detour does with connections and the standard library does not: cheaper
// reads and writes of TCP sockets, several datagrams in one system call, writes that are gathered
// (CorkConn), copies that use little memory while they wait, and what was once written in many
// places: Abort, Below, PrefixedConn, Backoff, AcceptLoop. Start from [Wrap].
//
// The traffic-agent imports it, so it knows neither gVisor nor Kubernetes.
package netx
