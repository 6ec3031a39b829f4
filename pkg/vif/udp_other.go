//go:build !linux

package vif

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"github.com/detour-dev/detour/pkg/netx"
)

func joinDatagrams(string, string, syscall.RawConn) error { return nil }

func sendTrain(*netx.Sender, []byte, int, netip.AddrPort) error { return errors.ErrUnsupported }

func mayNotCut(err error) bool { return errors.Is(err, errors.ErrUnsupported) }

// trainReader reads one datagram at a time.
type trainReader struct {
	conn   *net.UDPConn
	buf    []byte
	trains [1]received
}

func newTrainReader(c *net.UDPConn) *trainReader {
	return &trainReader{conn: c, buf: make([]byte, trainBuffer)}
}

func (r *trainReader) read() ([]received, error) {
	n, from, err := r.conn.ReadFromUDPAddrPort(r.buf)
	if err != nil || n == 0 {
		return nil, err
	}
	r.trains[0] = received{buf: r.buf[:n], size: n, from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	return r.trains[:], nil
}
