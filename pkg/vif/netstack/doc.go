// Package netstack is a TCP/IP stack in user space (gVisor's) whose link is a tun.Device. It ends
// the flows that come through the link and forwards them with ordinary sockets, so that neither the
// hub in the cluster nor a rootless laptop needs a privilege. Start with New; Stack also dials and
// listens on the link's side.
//
// A connection through the stack is accepted only when its destination accepted, refused when that
// refuses, and reset when that resets.
package netstack
