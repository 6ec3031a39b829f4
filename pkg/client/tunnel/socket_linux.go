package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// notSent bounds the bytes that the kernel holds unsent. A longer queue would be delay that nothing
// measures.
const notSent = 256 << 10

// smallSendQueue is a net.Dialer.Control that sets the bound.
func smallSendQueue(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent) // a hint
	})
}
