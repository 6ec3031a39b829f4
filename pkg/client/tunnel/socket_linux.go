package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// notSent bounds, in bytes, what the kernel holds unsent: a long queue there would be delay that nobody sees.
const notSent = 256 << 10

func smallSendQueue(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent) // a hint; nothing depends on it
	})
}
