package netx

import (
	"errors"
	"net"
	"syscall"

	"github.com/detour-dev/detour/pkg/netx/spin"
)

// SpinUntilReadable looks for a moment whether a socket has something to say, where that pays, and says whether it has. Whoever reads it then does not fall asleep.
func SpinUntilReadable(c net.Conn, g *spin.Policy) (came bool) {
	s, ok := c.(*Conn)
	if !ok || !g.ShouldSpin() {
		return false
	}
	var b [1]byte
	_ = s.raw.Control(func(fd uintptr) {
		for range spin.Iterations {
			if _, err := Peek(fd, b[:]); !errors.Is(err, syscall.EAGAIN) {
				came = true
				g.Record(true)
				return
			}
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
		}
		g.Record(false)
	})
	return came
}
