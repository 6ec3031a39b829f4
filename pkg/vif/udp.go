package vif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// gsoBytes is the most that the kernel takes as one datagram to cut, with room for the headers.
	gsoBytes = 65000
	// Of the buffers of a receive only the last ones must hold what the kernel joined (conn.StdNetBind reads into these and cuts
	// from there into the others).
	smallBuffer, largeBuffer, largeBuffers = 2 << 10, 64 << 10, 8
)

// udpSocket sends and receives messages as datagrams, in batches: WireGuard's own socket, and pieces for what is too large.
type udpSocket struct {
	inner   conn.Bind
	port    uint16
	receive []conn.ReceiveFunc
	pieces  atomic.Uint32
	done    chan struct{}
	closed  sync.Once
	running sync.WaitGroup
}

// listenUDP opens a socket, for IPv4 and IPv6 where the machine has it; port 0 is any.
func listenUDP(port uint16) (*udpSocket, error) {
	inner := conn.NewStdNetBind()
	receive, port, err := inner.Open(port)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	return &udpSocket{inner: inner, port: port, receive: receive, done: make(chan struct{})}, nil
}

// start gives what comes to WireGuard, until close. joiner finds where the pieces of a sender are put together; it returns nil for a
// stranger, whose pieces are dropped.
func (u *udpSocket) start(b *pathBind, joiner func(netip.AddrPort) *joiner) {
	for _, f := range u.receive {
		u.running.Go(func() { u.receiveLoop(f, b, joiner) })
	}
}

func (u *udpSocket) close() {
	u.closed.Do(func() {
		close(u.done)
		_ = u.inner.Close()
	})
	u.running.Wait()
}

func (u *udpSocket) receiveLoop(receive conn.ReceiveFunc, b *pathBind, joiner func(netip.AddrPort) *joiner) {
	n := u.inner.BatchSize()
	bufs, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
	for i := range bufs {
		size := smallBuffer
		if i >= n-largeBuffers {
			size = largeBuffer
		}
		bufs[i] = make([]byte, size)
	}
	for {
		n, err := receive(bufs, sizes, eps)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-u.done:
				return
			case <-time.After(50 * time.Millisecond):
				continue
			}
		}
		if !u.take(bufs[:n], sizes, eps, b, joiner) {
			return
		}
	}
}

// take hands on a batch of datagrams, and says whether there will be use for another one.
func (u *udpSocket) take(bufs [][]byte, sizes []int, eps []conn.Endpoint, b *pathBind, joinerOf func(netip.AddrPort) *joiner) bool {
	var from *udpWire
	var c *chunk
	var join *joiner
	flush := func() bool {
		if c == nil {
			return true
		}
		full := c
		c = nil
		if len(full.messages) == 0 {
			full.put()
			return true
		}
		return b.deliver(full, u.done)
	}
	for i, buf := range bufs {
		m := buf[:min(sizes[i], len(buf))]
		ep, ok := eps[i].(*conn.StdNetEndpoint)
		if len(m) < 4 || !ok {
			continue
		}
		if from == nil || from.AddrPort != ep.AddrPort {
			if !flush() {
				return false
			}
			from = &udpWire{StdNetEndpoint: ep, socket: u}
			join = joinerOf(from.address())
		}
		switch {
		case isProbe(m):
			b.probe(from, m)
			join = joinerOf(from.address()) // the probe may have made it known
			continue
		case isPiece(m):
			if join == nil {
				continue
			}
			if m = join.add(m); m == nil {
				continue
			}
		}
		if c == nil {
			c = newChunk(from)
		}
		if !c.add(m) {
			if !flush() {
				return false
			}
			c = newChunk(from)
			c.add(m)
		}
	}
	return flush()
}

var scratches = sync.Pool{New: func() any { b := make([]byte, 0, gsoBytes); return &b }}

// send sends messages, those that are too large in pieces. Pieces lie one after the other in memory, so that the socket below,
// which joins what it finds equally long, has nothing to move.
func (u *udpSocket) send(messages [][]byte, to *conn.StdNetEndpoint) error {
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	var batch [][]byte
	for len(messages) > 0 {
		small := 0
		for small < len(messages) && len(messages[small]) <= maxDatagram {
			small++
		}
		if small > 0 {
			if err := u.sendBatch(messages[:small], to); err != nil {
				return err
			}
			messages = messages[small:]
			continue
		}
		buf, taken := (*scratch)[:0], 0
		batch = batch[:0]
		for taken < len(messages) && len(messages[taken]) > maxDatagram && len(batch)+maxPieces <= conn.IdealBatchSize {
			at := len(buf)
			longer, pieces, size := cut(buf, messages[taken], u.pieces.Add(1))
			if pieces == 0 {
				break
			}
			buf = longer
			for ; at < len(buf); at += size {
				batch = append(batch, buf[at:at+size:cap(buf)])
			}
			taken++
		}
		if taken == 0 {
			return fmt.Errorf("a message of %d bytes is too long for UDP", len(messages[0]))
		}
		if err := u.sendBatch(batch, to); err != nil {
			return err
		}
		messages = messages[taken:]
	}
	return nil
}

func (u *udpSocket) sendBatch(batch [][]byte, to *conn.StdNetEndpoint) error {
	err := u.inner.Send(batch, to)
	var offload conn.ErrUDPGSODisabled
	if errors.As(err, &offload) { // it was sent again without
		err = offload.RetryErr
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", to.DstToString(), err)
	}
	return nil
}

// udpWire is an address that a socket sends to.
type udpWire struct {
	*conn.StdNetEndpoint
	socket *udpSocket
}

func (w *udpWire) send(messages [][]byte) error { return w.socket.send(messages, w.StdNetEndpoint) }

// address is the same whichever way the kernel writes it.
func (w *udpWire) address() netip.AddrPort {
	return netip.AddrPortFrom(w.Addr().Unmap(), w.Port())
}
