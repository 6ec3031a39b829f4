package netx

import (
	"net"
	"sync"
)

// gatherMost is what a CorkConn writes at once, in bytes: eight full records of TLS, which are twice the kernel's largest packet.
const gatherMost = 132 << 10

var gatherBuffers = sync.Pool{New: func() any { b := make([]byte, 0, gatherMost); return &b }}

// CorkConn is a connection that writes at once what comes piece by piece, such as the records of 16 KiB that TLS makes of a message. Each
// system call would be a packet, with a way of its own through all of a node's network.
type CorkConn struct {
	net.Conn

	mu      sync.Mutex
	holding bool
	held    *[]byte // from the pool, while there is something
}

// Write implements net.Conn. Between Cork and Uncork an error may be that of an earlier Write.
func (g *CorkConn) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holding {
		return g.Conn.Write(b)
	}
	if len(b) >= gatherMost || g.held != nil && len(*g.held)+len(b) > gatherMost {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	if len(b) >= gatherMost {
		return g.Conn.Write(b)
	}
	if g.held == nil {
		g.held = gatherBuffers.Get().(*[]byte)
	}
	*g.held = append(*g.held, b...)
	return len(b), nil
}

// flush writes what is held; g.mu is.
func (g *CorkConn) flush() error {
	if g.held == nil {
		return nil
	}
	_, err := g.Conn.Write(*g.held)
	*g.held = (*g.held)[:0]
	gatherBuffers.Put(g.held)
	g.held = nil
	return err
}

// Cork begins to gather.
func (g *CorkConn) Cork() {
	g.mu.Lock()
	g.holding = true
	g.mu.Unlock()
}

// Uncork writes what is left, and ends what Cork began.
func (g *CorkConn) Uncork() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = false
	return g.flush()
}
