//go:build !linux

package socket

import "net"

type direct struct{}

func newConn(c *net.TCPConn) net.Conn { return c }
