package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/detour-dev/detour/pkg/netx"
)

const (
	// With GSO one system call takes up to gsoBytes, headers included, and the kernel cuts them
	// into at most gsoDatagrams datagrams.
	gsoBytes, gsoDatagrams = 65000, 64
	// socketBuffer is the buffer that each socket asks of the kernel for each direction, in bytes.
	socketBuffer = 7 << 20
	// trainBuffer holds all datagrams that the kernel joined (GRO), in bytes, and trainsAtOnce is
	// how many of these buffers one read fills.
	trainBuffer, trainsAtOnce = 64 << 10, 4
	// bindAttempts is how often listenUDP looks for a port that is free for both IP families.
	bindAttempts = 100
)

// Each IP family has a socket of its own. One socket for both would know IPv4 only on machines that
// have IPv6.
const (
	udp4 = iota
	udp6
	families
)

// udpSocket sends and receives messages as datagrams, and messages that are too large as fragments.
//
// Gain: the kernel takes and gives many datagrams in one system call (GSO and GRO). Cost: a buffer
// of 64 KiB for each train. BenchmarkSend shows the gain; the figures are in
// docs/design/performance-log.md.
type udpSocket struct {
	port        uint16
	conns       [families]*net.UDPConn // nil for a family that the machine does not have
	senders     [families]*netx.Sender
	nextMessage atomic.Uint32
	noGSO       atomic.Bool // the kernel or the network card has no GSO
	// reassemblerOf finds the reassembler for a sender's fragments. It returns nil for an unknown
	// sender, whose fragments are dropped.
	reassemblerOf func(netip.AddrPort) *reassembler
}

// listenUDP opens a socket for IPv4, and for IPv6 where the machine has it. Port 0 is for any port.
func listenUDP(port uint16, reassemblerOf func(netip.AddrPort) *reassembler) (*udpSocket, error) {
	for attempt := 1; ; attempt++ {
		u := &udpSocket{port: port, reassemblerOf: reassemblerOf}
		err := u.listen()
		if err == nil {
			return u, nil
		}
		u.close()
		if port != 0 || attempt == bindAttempts || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("open a UDP socket: %w", err)
		}
	}
}

func (u *udpSocket) listen() error {
	for family, network := range []string{"udp4", "udp6"} {
		config := net.ListenConfig{Control: enableGRO}
		c, err := config.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(u.port)))
		if errors.Is(err, syscall.EAFNOSUPPORT) && (family == udp4 || u.conns[udp4] != nil) {
			continue
		}
		if err != nil {
			return err
		}
		u.conns[family] = c.(*net.UDPConn)
		u.senders[family] = netx.NewSender(u.conns[family])
		u.port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		_ = u.conns[family].SetReadBuffer(socketBuffer)
		_ = u.conns[family].SetWriteBuffer(socketBuffer)
	}
	return nil
}

func (u *udpSocket) close() {
	for _, c := range u.conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// interrupt ends reads that wait, and resume lets them wait again.
func (u *udpSocket) interrupt() { u.setDeadline(time.Unix(1, 0)) }
func (u *udpSocket) resume()    { u.setDeadline(time.Time{}) }

func (u *udpSocket) setDeadline(t time.Time) {
	for _, c := range u.conns {
		if c != nil {
			_ = c.SetReadDeadline(t)
		}
	}
}

// trainWriter collects datagrams of one size one after the other in memory; the last one may be
// shorter. The kernel takes them as one (GSO).
type trainWriter struct {
	buf   []byte
	size  int
	count int
}

var trains = sync.Pool{New: func() any { return &trainWriter{buf: make([]byte, 0, gsoBytes)} }}

// fits reports whether count datagrams of a size can follow.
func (t *trainWriter) fits(count, size int) bool {
	return t.count == 0 || size <= t.size && len(t.buf) == t.count*t.size && (size == t.size || count == 1) &&
		t.count+count <= gsoDatagrams && len(t.buf)+count*size <= cap(t.buf)
}

func (t *trainWriter) added(count, size int) {
	if t.count == 0 {
		t.size = size
	}
	t.count += count
}

// send sends messages. It cuts those that are too large into fragments, with a parity fragment if
// parity is set.
func (u *udpSocket) send(messages [][]byte, to netip.AddrPort, parity bool) error {
	t := trains.Get().(*trainWriter)
	defer trains.Put(t)
	t.buf, t.count = t.buf[:0], 0
	for _, m := range messages {
		count, size, extra := 1, len(m), false
		if len(m) > MaxDatagram {
			count, size = fragmentsOf(len(m))
			if extra = parity && count >= parityFrom && count < maxFragments && (count+1)*size <= cap(t.buf); extra {
				count++
			}
			if count > maxFragments || count*size > cap(t.buf) {
				return fmt.Errorf("a message of %d bytes is too long for UDP", len(m))
			}
		}
		if !t.fits(count, size) {
			if err := u.flush(t, to); err != nil {
				return err
			}
		}
		if len(m) > MaxDatagram {
			t.buf, _, _ = appendFragments(t.buf, m, u.nextMessage.Add(1), extra)
		} else {
			t.buf = append(t.buf, m...)
		}
		t.added(count, size)
	}
	return u.flush(t, to)
}

// flush sends a train and empties it.
func (u *udpSocket) flush(t *trainWriter, to netip.AddrPort) error {
	buf, size, count := t.buf, t.size, t.count
	t.buf, t.count = t.buf[:0], 0
	if count == 0 {
		return nil
	}
	s := u.senders[udp4]
	if !to.Addr().Is4() {
		s = u.senders[udp6]
	}
	if s == nil {
		return fmt.Errorf("send to %s: %w", to, syscall.EAFNOSUPPORT)
	}
	if count > 1 && !u.noGSO.Load() {
		err := sendTrain(s, buf, size, to)
		if err == nil || !noGSOError(err) {
			return sendError(to, err)
		}
		u.noGSO.Store(true)
	}
	for len(buf) > 0 {
		n := min(size, len(buf))
		if err := s.Send(buf[:n], nil, to); err != nil {
			return sendError(to, err)
		}
		buf = buf[n:]
	}
	return nil
}

func sendError(to netip.AddrPort, err error) error {
	if err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

// datagramWire is an address that a socket sends to.
type datagramWire struct {
	to          netip.AddrPort
	socket      *udpSocket
	reassembler *reassembler // for the sender's fragments; nil for an unknown sender
}

func (w *datagramWire) Send(messages [][]byte) error {
	return w.socket.send(messages, w.to, w.reassembler != nil && w.reassembler.sendParity.Load())
}

// These are the methods of conn.Endpoint. The kernel chooses the source address.

func (w *datagramWire) ClearSrc()           {}
func (w *datagramWire) SrcToString() string { return "" }
func (w *datagramWire) DstToString() string { return w.to.String() }
func (w *datagramWire) DstToBytes() []byte  { b, _ := w.to.MarshalBinary(); return b }
func (w *datagramWire) DstIP() netip.Addr   { return w.to.Addr() }
func (w *datagramWire) SrcIP() netip.Addr   { return netip.Addr{} }

// datagramTrain is datagrams of one sender that the kernel joined (GRO). All have one size; the
// last one may be shorter.
type datagramTrain struct {
	buf  []byte
	size int
	from netip.AddrPort
}

// datagramReader gives one socket's datagrams to WireGuard directly: it reads when WireGuard asks
// for messages.
type datagramReader struct {
	bind    *bind
	socket  *udpSocket // the socket of the waiting datagrams
	reader  *trainReader
	waiting []datagramTrain
	from    *datagramWire // the sender of the last datagram
}

// receiveDatagrams is the one of WireGuard's receivers for the datagrams of one IP family. It
// follows the bind from socket to socket.
func (b *bind) receiveDatagrams(family int, closing chan struct{}) conn.ReceiveFunc {
	r := &datagramReader{bind: b}
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for {
			if n := r.take(packets, sizes, eps); n > 0 {
				return n, nil
			}
			u := b.awaitSocket(family, closing)
			if u == nil {
				return 0, net.ErrClosed
			}
			if u != r.socket {
				r.socket, r.reader, r.from = u, newTrainReader(u.conns[family]), nil
			}
			var err error
			if r.waiting, err = r.reader.read(); err != nil {
				r.waiting = nil
				if errors.Is(err, net.ErrClosed) {
					b.socketClosed(u)
					continue
				}
				select {
				case <-closing:
					return 0, net.ErrClosed
				case <-time.After(time.Millisecond): // after an ICMP error, or a deadline that passed
				}
			}
		}
	}
}

// take gives WireGuard what was read, as far as there is room.
func (r *datagramReader) take(packets [][]byte, sizes []int, eps []conn.Endpoint) (n int) {
	for len(r.waiting) > 0 {
		t := &r.waiting[0]
		for len(t.buf) > 0 {
			if n == len(packets) {
				return n
			}
			m, whole := r.next(t, packets[n])
			if m == 0 {
				continue
			}
			sizes[n], eps[n] = copyUnless(packets[n], whole, m), r.from
			n++
		}
		r.waiting = r.waiting[1:]
	}
	return n
}

// copyUnless copies a message of m bytes. It does nothing when message is nil, because the message
// is in place already.
func copyUnless(to, message []byte, m int) int {
	if message != nil {
		return copy(to, message)
	}
	return m
}

// next takes a datagram, or the fragments of a message that lie one after the other. It returns the
// length of the message that is complete now, 0 for none, and the message itself unless next has
// put it into packet.
func (r *datagramReader) next(t *datagramTrain, packet []byte) (int, []byte) {
	d := t.buf[:min(t.size, len(t.buf))]
	if r.from == nil || r.from.to != t.from {
		r.from = &datagramWire{to: t.from, socket: r.socket, reassembler: r.socket.reassemblerOf(t.from)}
	}
	if isFragment(d) && r.from.reassembler != nil {
		if n, taken := reassembleInOrder(packet, t.buf, t.size); taken > 0 {
			r.from.reassembler.skip(d)
			t.buf = t.buf[taken:]
			return n, nil
		}
	}
	t.buf = t.buf[len(d):]
	switch {
	case isProbe(d):
		r.bind.probe(r.from, d)
		if known := r.socket.reassemblerOf(t.from); known != r.from.reassembler { // the probe has made the sender known
			r.from = &datagramWire{to: t.from, socket: r.socket, reassembler: known}
		}
	case isFragment(d):
		if r.from.reassembler != nil {
			m := r.from.reassembler.add(d)
			return len(m), m
		}
	case len(d) >= 4:
		return len(d), d
	}
	return 0, nil
}
