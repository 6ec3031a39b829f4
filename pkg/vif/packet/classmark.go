package packet

import (
	"golang.zx2c4.com/wireguard/device"
)

// The class mark says of a packet that its flow is bulk. The flow is seen in the plain packet, and
// the class is needed with the encrypted message; in between WireGuard keeps nothing of ours. So
// the mark travels in the last byte of the buffer that WireGuard reads a packet into and encrypts
// it in: no message is long enough to reach that byte.
//
// Gain: no table of flows is needed after encryption, and no second pass over the packet. Cost: the
// mark relies on a layout that WireGuard does not promise, so CheckClassMark tries it at the start
// of each end.

// bulkMark is the value of that byte for a packet of a bulk flow.
const bulkMark = 'b'

// SetClassMark marks the packet of size bytes at offset in one of WireGuard's buffers. A packet
// that fills the buffer stays without a mark.
func SetClassMark(buffer []byte, offset, size int, bulk bool) {
	last := len(buffer) - 1
	if offset+size >= last {
		return
	}
	buffer[last] = 0
	if bulk {
		buffer[last] = bulkMark
	}
}

// IsBulk reports whether WireGuard made a message of a packet that was marked. Handshakes and
// keepalives never are.
func IsBulk(message []byte) bool {
	if len(message) == device.MessageKeepaliveSize {
		return false
	}
	if cap(message) != device.MaxMessageSize || len(message) == cap(message) {
		return false
	}
	return message[:cap(message)][cap(message)-1] == bulkMark
}
