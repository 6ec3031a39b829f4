package vif

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// joinDatagrams asks the kernel to join what comes from one sender (GRO). Where it cannot, datagrams come one by one.
func joinDatagrams(network, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		// Above the machine's limit, where this process may.
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
func sendTrain(c *net.UDPConn, buf []byte, size int, to netip.AddrPort) error {
	var control [32]byte
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&control[unix.CmsgLen(0)])) = uint16(size)
	_, _, err := c.WriteMsgUDPAddrPort(buf, control[:unix.CmsgSpace(2)], to)
	return err
}

// mayNotCut says whether an error means that there is no GSO: an old kernel, or a network card that makes no checksums.
func mayNotCut(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)
}

// trainReader reads many datagrams at once.
type trainReader struct {
	conn interface {
		ReadBatch([]ipv4.Message, int) (int, error)
	}
	messages []ipv4.Message
	trains   []received
}

func newTrainReader(c *net.UDPConn, family int) *trainReader {
	r := &trainReader{messages: make([]ipv4.Message, trainsAtOnce), trains: make([]received, trainsAtOnce)}
	if family == udp4 {
		r.conn = ipv4.NewPacketConn(c)
	} else {
		r.conn = ipv6.NewPacketConn(c)
	}
	for i := range r.messages {
		r.messages[i].Buffers = [][]byte{make([]byte, trainBuffer)}
		r.messages[i].OOB = make([]byte, unix.CmsgSpace(4))
	}
	return r
}

// read waits for datagrams. The next read overwrites them.
func (r *trainReader) read() ([]received, error) {
	n, err := r.conn.ReadBatch(r.messages, 0)
	if err != nil {
		return nil, err
	}
	all := r.trains[:0]
	for i := range n {
		m := &r.messages[i]
		from, ok := m.Addr.(*net.UDPAddr)
		if m.N == 0 || !ok {
			continue
		}
		at := from.AddrPort()
		all = append(all, received{buf: m.Buffers[0][:m.N], size: joinedSize(m.OOB[:m.NN], m.N), from: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())})
	}
	return all, nil
}

// joinedSize is the size of the datagrams that the kernel joined; whole when it did not.
func joinedSize(control []byte, whole int) int {
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
