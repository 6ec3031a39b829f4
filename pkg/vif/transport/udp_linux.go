package transport

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/netx"
)

// enableGRO asks the kernel to join datagrams of one sender (GRO). A kernel without GRO hands them
// over one by one.
func enableGRO(network, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		// This exceeds the machine's limit where this process may.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		if network == "udp6" {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		}
	})
	return errors.Join(err, failed)
}

// sendTrain lets the kernel cut buf into datagrams (GSO).
func sendTrain(s *netx.Sender, buf []byte, size int, to netip.AddrPort) error {
	var control [32]byte
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&control[unix.CmsgLen(0)])) = uint16(size)
	return s.Send(buf, control[:unix.CmsgSpace(2)], to)
}

// noGSOError reports whether an error means that there is no GSO: the kernel is old, or the network
// card makes no checksums.
func noGSOError(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) ||
		errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)
}

// trainReader reads many datagrams at once.
type trainReader struct {
	receiver  *netx.Receiver
	datagrams []netx.Datagram
	trains    []datagramTrain
}

func newTrainReader(c *net.UDPConn) *trainReader {
	return &trainReader{receiver: netx.NewReceiver(c, trainsAtOnce, trainBuffer, unix.CmsgSpace(4))}
}

// read waits for datagrams. The next read overwrites them.
func (r *trainReader) read() ([]datagramTrain, error) {
	var err error
	if r.datagrams, err = r.receiver.Receive(r.datagrams[:0]); err != nil {
		return nil, err
	}
	r.trains = r.trains[:0]
	for _, d := range r.datagrams {
		if len(d.Data) > 0 {
			r.trains = append(r.trains, datagramTrain{buf: d.Data, size: groSize(d.Control, len(d.Data)), from: d.From})
		}
	}
	return r.trains, nil
}

// groSize is the size of the datagrams that the kernel joined; it is whole when the kernel joined
// none.
func groSize(control []byte, whole int) int {
	for len(control) >= unix.CmsgLen(0) {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		if header.Level == unix.SOL_UDP && header.Type == unix.UDP_GRO && len(data) >= 2 {
			if size := int(*(*uint16)(unsafe.Pointer(&data[0]))); size > 0 {
				return size
			}
		}
		control = rest
	}
	return whole
}
