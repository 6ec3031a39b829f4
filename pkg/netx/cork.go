package netx

import (
	"net"
	"sync"
)

// Gathered writes.
//
// crypto/tls writes each record of 16 KiB by itself, and each write is a packet that passes a
// node's bridges, filter and conntrack alone. A corked connection gathers them to one write, as
// TCP_CORK does in the kernel, but for one system call.
//
// Gain: during an upload the daemon spent a fifth of its time in the network stack; a byte of a
// download cost the agent 2.8 to 4.0 -> 1.3 ns and the traffic-manager 2.5 to 3.4 -> 1.7. Cost: one
// more copy of a bulk message, and a pooled buffer. Measured in the cluster and in the laboratory
// (docs/design/performance-log.md); BenchmarkCork compares it with a plain TLS connection.

// corkSize is how many bytes a CorkConn writes at once: eight full TLS records, which are two of
// the kernel's largest packets.
const corkSize = 132 << 10

var corkBuffers = sync.Pool{New: func() any { b := make([]byte, 0, corkSize); return &b }}

// CorkConn is a connection that gathers its writes between Cork and Uncork.
type CorkConn struct {
	net.Conn

	// mu guards the fields below, and orders the writes.
	mu     sync.Mutex
	corked bool
	queued *[]byte // from corkBuffers, nil while nothing is queued
}

// Write implements net.Conn. Between Cork and Uncork an error may be that of an earlier Write.
func (c *CorkConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.Conn.Write(b)
	}
	if len(b) >= corkSize || c.queued != nil && len(*c.queued)+len(b) > corkSize {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(b) >= corkSize {
		return c.Conn.Write(b)
	}
	if c.queued == nil {
		c.queued = corkBuffers.Get().(*[]byte)
	}
	*c.queued = append(*c.queued, b...)
	return len(b), nil
}

func (c *CorkConn) flushLocked() error {
	if c.queued == nil {
		return nil
	}
	_, err := c.Conn.Write(*c.queued)
	*c.queued = (*c.queued)[:0]
	corkBuffers.Put(c.queued)
	c.queued = nil
	return err
}

// Cork begins to gather writes.
func (c *CorkConn) Cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// Uncork writes what was gathered, and ends what Cork began.
func (c *CorkConn) Uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flushLocked()
}
