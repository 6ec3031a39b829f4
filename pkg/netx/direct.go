package netx

import "net"

// Direct system calls.
//
// package net tells Go's scheduler about each system call, because a call may block. A call on a
// non-blocking socket never does. But when a call takes longer than 20 µs, as a write does that
// carries its bytes all the way to a reader on the same machine, the scheduler gives the processor
// to another thread, and its monitor looks again every 20 µs. Conn makes its system calls without
// telling the scheduler.
//
// Gain: 14 to 17 % of the processor time of manager, agent and daemon was that monitor; a request
// that a laptop answers cost 438 -> 310 µs on one connection, 162 -> 117 µs on 16 (together with
// what netstack gained at the same time). Cost: unsafe and raw system calls, in this file's _linux
// part. Measured in the laboratory (docs/design/performance-log.md); BenchmarkConn compares it with
// package net.

// Conn is a TCP connection with cheap Read and Write. Everything else is the connection's own.
type Conn struct {
	*net.TCPConn
	direct
}

// Wrap returns a Conn for a TCP connection of the kernel. Any other connection it returns as it is.
func Wrap(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	return newConn(t)
}

// NetConn returns the connection below.
func (c *Conn) NetConn() net.Conn { return c.TCPConn }
