//go:build !linux

package transport

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"github.com/detour-dev/detour/pkg/netx"
)

func enableGRO(string, string, syscall.RawConn) error { return nil }

func sendTrain(*netx.Sender, []byte, int, netip.AddrPort) error { return errors.ErrUnsupported }

func noGSOError(err error) bool { return errors.Is(err, errors.ErrUnsupported) }

// trainReader reads one datagram at a time.
type trainReader struct {
	conn   *net.UDPConn
	buf    []byte
	trains [1]datagramTrain
}

func newTrainReader(c *net.UDPConn) *trainReader {
	return &trainReader{conn: c, buf: make([]byte, trainBuffer)}
}

func (r *trainReader) read() ([]datagramTrain, error) {
	n, from, err := r.conn.ReadFromUDPAddrPort(r.buf)
	if err != nil || n == 0 {
		return nil, err
	}
	r.trains[0] = datagramTrain{buf: r.buf[:n], size: n, from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	return r.trains[:], nil
}
