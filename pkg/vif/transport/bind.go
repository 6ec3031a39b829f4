package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// Wire carries messages to one other end: a stream, or an address that a UDP socket sends to. It is
// the seam between WireGuard's bind and the transports.
type Wire interface {
	conn.Endpoint
	// Send may drop messages, as any network may. An error means that none of them will arrive.
	// Send does not keep the messages. It is safe for several goroutines.
	Send(messages [][]byte) error
}

// bind is a conn.Bind of many wires at once. The hub answers a laptop on the wire that WireGuard
// roamed to, which is the one of the last authentic message. A laptop has one peer and several
// paths to it, and chooses one for each message.
type bind struct {
	chunks chan *chunk
	// direct takes streams that one of WireGuard's receivers is to read itself, while a receiver is
	// free.
	direct chan *StreamWire
	// choose returns the laptop's path for the next message; it is nil in the hub.
	choose func() Wire
	// probe takes the messages that are not WireGuard's. It must not keep them.
	probe func(from Wire, message []byte)
	// unauth has the hub's streams without proof of a laptop.
	unauth unauthStreams

	// mu guards the fields below.
	mu      sync.Mutex
	closing chan struct{} // Close closes it, Open makes a new one
	streams map[string]*StreamWire
	count   uint64
	socket  *udpSocket // nil when no datagrams are taken
	changed sync.Cond  // signals a change of socket or closing
}

// newBind makes a bind that WireGuard opens and closes. choose is nil in the hub; probe is
// required.
func newBind(choose func() Wire, probe func(Wire, []byte)) *bind {
	closed := make(chan struct{})
	close(closed)
	b := &bind{
		choose:  choose,
		probe:   probe,
		chunks:  make(chan *chunk, 16),
		direct:  make(chan *StreamWire),
		closing: closed,
		streams: map[string]*StreamWire{},
	}
	b.changed.L = &b.mu
	return b
}

// useSocket sets the socket that datagrams are taken from; nil is for none.
func (b *bind) useSocket(u *udpSocket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.socket = u
	b.changed.Broadcast()
}

// socketClosed forgets a socket that was closed.
func (b *bind) socketClosed(u *udpSocket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == u {
		b.socket = nil
	}
}

// awaitSocket waits for a socket of a family. It returns nil when closing is closed.
func (b *bind) awaitSocket(family int, closing chan struct{}) *udpSocket {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		select {
		case <-closing:
			return nil
		default:
		}
		if b.socket != nil && b.socket.conns[family] != nil {
			return b.socket
		}
		b.changed.Wait()
	}
}

// chunk is some messages from one stream on their way to WireGuard.
type chunk struct {
	buf      []byte
	messages [][]byte // slices of buf
	next     int      // the first message that WireGuard does not have yet
	from     conn.Endpoint
}

var chunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, readChunk)} }}

func newChunk(from conn.Endpoint) *chunk {
	c := chunks.Get().(*chunk)
	c.messages, c.next, c.from = c.messages[:0], 0, from
	return c
}

func (c *chunk) put() {
	c.from = nil
	if len(c.buf) == readChunk {
		chunks.Put(c)
	}
}

// deliver hands a chunk to WireGuard, and reports whether WireGuard took it. It owns the chunk in
// any case.
func (b *bind) deliver(c *chunk, done <-chan struct{}) bool {
	b.mu.Lock()
	closing := b.closing
	b.mu.Unlock()
	select {
	case b.chunks <- c:
		return true
	case <-done:
	case <-closing:
	}
	c.put()
	return false
}

// serve carries messages over rw until it ends or ctx does, and closes rw. It calls opened, which
// may be nil, when messages can be sent.
func (b *bind) serve(ctx context.Context, rw io.ReadWriteCloser, opened func(*StreamWire)) error {
	b.mu.Lock()
	b.count++
	s := newStreamWire(fmt.Sprintf("stream-%d", b.count), rw)
	b.streams[s.id] = s
	b.mu.Unlock()
	if b.choose == nil {
		defer b.unauth.add(s)()
	} else {
		s.authenticated.Store(true)
	}

	defer func() {
		b.mu.Lock()
		delete(b.streams, s.id)
		b.mu.Unlock()
		s.unlink()
	}()

	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	var loops errgroup.Group
	loops.Go(func() error { defer s.Close(); return s.writeLoop() })
	loops.Go(func() error {
		defer s.Close()
		return s.readLoop(b.direct, b.probe, func(c *chunk) bool { return b.deliver(c, s.done) })
	})
	if opened != nil {
		opened(s)
	}
	err := loops.Wait()
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return ctx.Err()
	}
	return err
}

// authenticated notes the wire that WireGuard's authentic messages came on.
func (b *bind) authenticated(name string) {
	if s := b.stream(name); s != nil {
		b.unauth.authenticate(s)
	}
}

// open reports whether the wire with a name is still there. An address never closes.
func (b *bind) open(name string) bool {
	if _, err := netip.ParseAddrPort(name); err == nil {
		return true
	}
	return b.stream(name) != nil
}

// stream returns the stream with a name; nil when it has ended.
func (b *bind) stream(name string) *StreamWire {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.streams[name]
}

func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.closing:
	default:
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	b.closing = make(chan struct{})
	if b.socket != nil {
		b.socket.resume()
	}
	receivers := []conn.ReceiveFunc{b.receiver(b.closing)}
	for range directStreams {
		receivers = append(receivers, b.receiveStreams(b.closing))
	}
	return append(receivers, b.receiveDatagrams(udp4, b.closing), b.receiveDatagrams(udp6, b.closing)), 0, nil
}

// directStreams is how many streams WireGuard reads itself: two for each of two laptops. The
// streams of more laptops go through chunks.
const directStreams = 4

// receiveStreams is one of WireGuard's receivers: it reads one stream after the other.
func (b *bind) receiveStreams(closing chan struct{}) conn.ReceiveFunc {
	var s *StreamWire
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for {
			if s == nil {
				select {
				case s = <-b.direct:
				case <-closing:
					return 0, net.ErrClosed
				}
			}
			n, err := s.receive(packets, sizes, eps, b.probe)
			if err != nil {
				if !errors.Is(err, errFrameTooLong) {
					err = readError(err)
				}
				s.reader.ended <- err
				s = nil
			}
			if n > 0 {
				return n, nil
			}
		}
	}
}

// receiver is the one of WireGuard's receivers that copies chunks, message by message, to
// WireGuard's buffers.
func (b *bind) receiver(closing chan struct{}) conn.ReceiveFunc {
	var current *chunk
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if current == nil {
			select {
			case current = <-b.chunks:
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
			current.put()
			current = nil
			select {
			case current = <-b.chunks:
			default:
				return n, nil
			}
		}
		return n, nil
	}
}

func (b *bind) Close() error {
	b.mu.Lock()
	var open []*StreamWire
	select {
	case <-b.closing:
	default:
		close(b.closing)
		b.changed.Broadcast()
		if b.socket != nil {
			b.socket.interrupt()
		}
		open = slices.Collect(maps.Values(b.streams))
	}
	b.mu.Unlock()
	for _, s := range open {
		s.Close() // WireGuard may be reading it
	}
	return nil
}

func (b *bind) SetMark(uint32) error { return nil }

func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	w, ok := ep.(Wire)
	if b.choose != nil {
		if w = b.choose(); w == nil {
			return errNoPath
		}
	} else if !ok {
		return conn.ErrWrongEndpointType
	}
	if s, ok := w.(*StreamWire); ok {
		return s.sendClassified(bufs)
	}
	return w.Send(bufs)
}

var errNoPath = errors.New("no tunnel is open to this peer")

// ParseEndpoint knows the one name that a laptop gives to WireGuard. Send chooses where messages
// go.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	if s == ChosenEndpoint {
		return chosenEndpoint{}, nil
	}
	return nil, fmt.Errorf("unknown endpoint %q", s)
}

func (b *bind) BatchSize() int { return packet.BatchSize }

// ChosenEndpoint is the only endpoint that a laptop configures in WireGuard.
const ChosenEndpoint = "chosen"

type chosenEndpoint struct{}

func (chosenEndpoint) ClearSrc()           {}
func (chosenEndpoint) SrcToString() string { return "" }
func (chosenEndpoint) DstToString() string { return ChosenEndpoint }
func (chosenEndpoint) DstToBytes() []byte  { return []byte(ChosenEndpoint) }
func (chosenEndpoint) DstIP() netip.Addr   { return netip.Addr{} }
func (chosenEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
