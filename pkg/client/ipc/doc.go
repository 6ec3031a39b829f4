// Package ipc connects the detour command line to the daemon: where their Unix socket is, how the
// command line dials it, and how the daemon learns which user is at the other end. It exists so
// that the command line does not link the daemon to find a path. Start with Paths, Dial and Listen.
package ipc
