// Package netx reads and writes TCP connections of the kernel at less cost than package net does. Go's scheduler is told of each system
// call, because it could block; but a socket that does not block never does, and where a call takes longer than 20 µs, as a write does
// that carries its bytes to a reader on the same machine, the scheduler gives the processor to another thread, and has its monitor look again
// every 20 µs. On the path of a small request that is a fifth of all that it costs (docs/performance.md).
package netx

import "net"

// Conn is a TCP connection whose Read and Write are cheap. All else is the connection's own.
type Conn struct {
	*net.TCPConn
	direct
}

// Wrap is c, cheaper. Nothing changes for a connection that is not the kernel's TCP.
func Wrap(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	return newConn(t)
}

// NetConn is the connection below.
func (c *Conn) NetConn() net.Conn { return c.TCPConn }

// Listener makes what it accepts cheap.
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Wrap(c), nil
}
