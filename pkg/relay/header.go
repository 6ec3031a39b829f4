package relay

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// LaptopPort is the TCP port on the laptop's VIF address where the daemon accepts relay
// connections. It is the only port of the laptop that the cluster can reach.
const LaptopPort = 7474

// MaxHeader bounds the encoded header, in bytes.
const MaxHeader = 4096

// WriteHeader sends h: the length of the message as a big-endian uint16, and the message.
func WriteHeader(w io.Writer, h *agentv1.RelayHeader) error {
	buf, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 2, 256), h)
	if err != nil {
		return fmt.Errorf("encode relay header: %w", err)
	}
	if len(buf)-2 > MaxHeader {
		return fmt.Errorf("relay header of %d bytes is over the limit of %d", len(buf)-2, MaxHeader)
	}
	binary.BigEndian.PutUint16(buf, uint16(len(buf)-2))
	if _, err := w.Write(buf); err != nil {
		return fmt.Errorf("send relay header: %w", err)
	}
	return nil
}

// ReadHeader receives one header. It reads nothing of what follows it.
func ReadHeader(r io.Reader) (*agentv1.RelayHeader, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, fmt.Errorf("read relay header: %w", err)
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > MaxHeader {
		return nil, fmt.Errorf("relay header of %d bytes is over the limit of %d", n, MaxHeader)
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, fmt.Errorf("read relay header: %w", err)
	}
	h := new(agentv1.RelayHeader)
	if err := proto.Unmarshal(buf, h); err != nil {
		return nil, fmt.Errorf("decode relay header: %w", err)
	}
	return h, nil
}

// WriteStatus sends the answer to a header.
func WriteStatus(w io.Writer, s agentv1.RelayStatus) error {
	if _, err := w.Write([]byte{byte(s)}); err != nil {
		return fmt.Errorf("send relay status: %w", err)
	}
	return nil
}

// ReadStatus receives the answer to a header.
func ReadStatus(r io.Reader) (agentv1.RelayStatus, error) {
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return agentv1.RelayStatus_RELAY_STATUS_UNSPECIFIED, fmt.Errorf("read relay status: %w", err)
	}
	return agentv1.RelayStatus(b[0]), nil
}
