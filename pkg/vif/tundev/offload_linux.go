package tundev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif/packet"
)

// virtioHeader is the length of the header that the kernel puts before each packet, and expects
// there (struct virtio_net_hdr): a byte of flags, a byte that tells a large packet, and 16 bits
// each for the length of all headers, the length of a segment's contents, the start of the
// checksummed bytes, and the place of the checksum in them. The numbers are in the machine's byte
// order.
const virtioHeader = 10

// offloadTUN is a TUN that passes large packets on as they are, if the other end of the tunnel
// takes them.
//
// Gain: a packet of up to 64 KiB costs as much as one of the MTU in the kernel, in WireGuard and in
// netstack. Cost: the header of each packet, which this file reads and writes. BenchmarkSegments
// shows the price of the cut that this saves; the figures are in docs/design/performance-log.md.
type offloadTUN struct {
	tun.Device
	file  *netx.File
	mtu   int
	large atomic.Bool

	// mu guards the fields below.
	mu      sync.Mutex
	pending packet.Segmenter // of a large packet that the other end does not take
	buf     []byte           // that packet
}

// smallPacket is the size up to which joining packets does not pay, in bytes.
const smallPacket = 2 << 10

// NewOffload turns the offloads of one of wireguard-go's TUNs on. It owns the device afterwards;
// after an error the caller still does.
func NewOffload(device tun.Device, mtu int) (*offloadTUN, error) {
	file, err := netx.NewFile(device.File())
	if err != nil {
		return nil, err
	}
	o := &offloadTUN{Device: device, file: file, mtu: mtu, buf: make([]byte, virtioHeader+1<<16)}
	raw, err := device.File().SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use the network interface: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var r *unix.Ifreq
		if r, failed = unix.NewIfreq(""); failed != nil {
			return
		}
		if failed = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, r); failed != nil {
			return
		}
		if r.Uint16()&unix.IFF_VNET_HDR == 0 {
			failed = errors.New("the interface has no offload header")
			return
		}
		// Datagrams come one by one: this leaves UDP's offload off.
		failed = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("set the network interface's offloads: %w", err)
	}
	return o, nil
}

// SetLarge sets whether the other end of the tunnel takes large packets, and checksums that are
// only begun.
func (o *offloadTUN) SetLarge(large bool) { o.large.Store(large) }

func (o *offloadTUN) BatchSize() int { return packet.BatchSize }

// Read needs room for the kernel's header before a packet, as WireGuard has it.
func (o *offloadTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if n := o.segments(bufs, sizes, offset); n > 0 {
			return n, nil
		}
		large := o.large.Load()
		into := o.buf
		if large {
			into = bufs[0][offset-virtioHeader:]
		}
		n, err := o.file.Read(into)
		if errors.Is(err, unix.EBADFD) {
			err = os.ErrClosed
		}
		if err != nil {
			return 0, err
		}
		if n <= virtioHeader {
			continue
		}
		pkt := into[virtioHeader:n]
		if !o.accept(into[:virtioHeader], pkt, large) {
			continue
		}
		sizes[0] = len(pkt)
		if !large {
			copy(bufs[0][offset:], pkt)
		}
		return 1, nil
	}
}

// accept completes a packet as its header asks for. It reports whether the packet can go on as it
// is. If not, the packet is invalid, or large for an end that takes no large packets; then segments
// hands it on.
func (o *offloadTUN) accept(head, pkt []byte, large bool) bool {
	isLarge := head[1] != unix.VIRTIO_NET_HDR_GSO_NONE
	start := int(binary.NativeEndian.Uint16(head[6:]))
	switch {
	case isLarge && large && len(pkt) <= packet.MaxLarge:
		if len(pkt) > start {
			packet.SetLength(pkt, start, 0)
		}
	case isLarge:
		mss := int(binary.NativeEndian.Uint16(head[4:]))
		if large {
			pkt = o.buf[:copy(o.buf, pkt)]
		}
		o.pending, _ = packet.NewSegmenter(pkt, mss)
		return false
	case head[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 && !large:
		return packet.FinishChecksum(pkt, start, int(binary.NativeEndian.Uint16(head[8:])))
	}
	return true
}

// segments reads further segments of a large packet that has to be cut.
func (o *offloadTUN) segments(bufs [][]byte, sizes []int, offset int) (n int) {
	for n < len(bufs) && o.pending.Active() {
		if sizes[n] = o.pending.Next(bufs[n][offset:]); sizes[n] == 0 {
			o.pending = packet.Segmenter{}
			break
		}
		n++
	}
	return n
}

// Write needs the same room before each packet, and may overwrite it.
func (o *offloadTUN) Write(bufs [][]byte, offset int) (int, error) {
	large, small := false, true
	for _, b := range bufs {
		large = large || len(b)-offset > o.mtu
		small = small && len(b)-offset <= smallPacket
	}
	if !large && !small {
		return o.Device.Write(bufs, offset) // which joins packets of a flow
	}
	var failed error
	for _, b := range bufs {
		head, pkt := b[offset-virtioHeader:offset], b[offset:]
		clear(head)
		if len(pkt) > o.mtu {
			o.describe(head, pkt)
		}
		if _, err := o.file.Write(b[offset-virtioHeader:]); err != nil {
			if errors.Is(err, unix.EBADFD) {
				return 0, os.ErrClosed
			}
			failed = errors.Join(failed, err)
		}
	}
	return len(bufs), failed
}

// describe tells the kernel how a large packet is made up.
func (o *offloadTUN) describe(head, pkt []byte) {
	s, ok := packet.NewSegmenter(pkt, 1)
	if !ok || s.Headers >= o.mtu {
		return
	}
	head[0], head[1] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, unix.VIRTIO_NET_HDR_GSO_TCPV4
	if pkt[0]>>4 == 6 {
		head[1] = unix.VIRTIO_NET_HDR_GSO_TCPV6
	}
	for i, v := range []int{s.Headers, o.mtu - s.Headers, s.IPHeader, packet.TCPChecksum} {
		binary.NativeEndian.PutUint16(head[2+2*i:], uint16(v))
	}
}
