// Package netx adds to package net what detour needs of connections: cheaper reads and writes of
// TCP sockets, several datagrams in one system call, writes that are gathered (CorkConn), and
// copies that use little memory while they wait. It also has helpers that several packages share:
// Abort, Below, PrefixedConn, Backoff and AcceptLoop. Start from [Wrap].
//
// The traffic-agent imports it, so it knows neither gVisor nor Kubernetes.
package netx
