package vif

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/conn"
)

// latestName is the endpoint that means "whatever stream was opened last": the laptop's only way to its one peer.
const latestName = "latest"

// streamBind is a conn.Bind whose wires are the streams given to serve. Each stream is an endpoint; WireGuard roams to the
// stream that a peer's last authentic message came from.
type streamBind struct {
	received chan *chunk
	// onePeer says that every stream leads to the same peer (a laptop's do), so the newest will do for one that has ended.
	onePeer bool

	mu      sync.Mutex
	closing chan struct{} // closed by Close, made anew by Open
	streams map[string]*stream
	latest  *stream
	count   uint64
}

func newStreamBind(onePeer bool) *streamBind {
	closed := make(chan struct{})
	close(closed)
	return &streamBind{onePeer: onePeer, received: make(chan *chunk, 16), closing: closed, streams: map[string]*stream{}}
}

// serve carries WireGuard messages over rw until it ends or ctx does, and closes rw. opened, if any, is called when messages can be sent.
func (b *streamBind) serve(ctx context.Context, rw io.ReadWriteCloser, opened func()) error {
	b.mu.Lock()
	b.count++
	s := newStream(fmt.Sprintf("stream-%d", b.count), rw)
	b.streams[s.id] = s
	b.latest = s
	closing := b.closing
	b.mu.Unlock()

	defer func() {
		b.mu.Lock()
		delete(b.streams, s.id)
		if b.latest == s {
			b.latest = nil
		}
		b.mu.Unlock()
	}()

	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	var loops errgroup.Group
	loops.Go(func() error { defer s.close(); return s.writeLoop() })
	loops.Go(func() error {
		defer s.close()
		return s.readLoop(func(c *chunk) bool {
			select {
			case b.received <- c:
				return true
			case <-s.done:
			case <-closing:
			}
			return false
		})
	})
	if opened != nil {
		opened()
	}
	err := loops.Wait()
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return ctx.Err()
	}
	return err
}

// open says whether the stream of that name is still there.
func (b *streamBind) open(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.streams[name]
	return ok
}

func (b *streamBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.closing:
	default:
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	b.closing = make(chan struct{})
	return []conn.ReceiveFunc{b.receiver(b.closing)}, 0, nil
}

// receiver hands chunks on, message by message, to WireGuard's buffers.
func (b *streamBind) receiver(closing chan struct{}) conn.ReceiveFunc {
	var current *chunk
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if current == nil {
			select {
			case current = <-b.received:
			case <-closing:
				return 0, net.ErrClosed
			}
		}
		n := 0
		for n < len(packets) {
			for n < len(packets) && current.next < len(current.messages) {
				sizes[n] = copy(packets[n], current.messages[current.next])
				eps[n] = current.from
				current.next++
				n++
			}
			if current.next < len(current.messages) {
				break
			}
			current.from = nil
			chunks.Put(current)
			current = nil
			select {
			case current = <-b.received:
			default:
				return n, nil
			}
		}
		return n, nil
	}
}

func (b *streamBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.closing:
	default:
		close(b.closing)
	}
	return nil
}

func (b *streamBind) SetMark(uint32) error { return nil }

func (b *streamBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	var to *stream
	switch ep := ep.(type) {
	case *stream:
		to = ep
	case latestEndpoint:
	default:
		return conn.ErrWrongEndpointType
	}
	b.mu.Lock()
	if to == nil || b.streams[to.id] != to {
		to = nil
		if b.onePeer {
			to = b.latest
		}
	}
	b.mu.Unlock()
	if to == nil {
		return errNoStream
	}
	to.send(bufs)
	return nil
}

var errNoStream = errors.New("no tunnel is open to this peer")

func (b *streamBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	if s == latestName {
		return latestEndpoint{}, nil
	}
	return nil, fmt.Errorf("unknown endpoint %q", s)
}

func (b *streamBind) BatchSize() int { return conn.IdealBatchSize }

type latestEndpoint struct{}

func (latestEndpoint) ClearSrc()           {}
func (latestEndpoint) SrcToString() string { return "" }
func (latestEndpoint) DstToString() string { return latestName }
func (latestEndpoint) DstToBytes() []byte  { return []byte(latestName) }
func (latestEndpoint) DstIP() netip.Addr   { return netip.Addr{} }
func (latestEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
