package netx

import (
	"errors"
	"net"
	"syscall"

	"github.com/detour-dev/detour/pkg/netx/spin"
)

// Look looks for a moment whether a socket has something to say, where that pays, and says whether it has. Whoever reads it then does not fall asleep.
func Look(c net.Conn, g *spin.Gain) (came bool) {
	s, ok := c.(*Conn)
	if !ok || !g.Pays() {
		return false
	}
	var b [1]byte
	_ = s.raw.Control(func(fd uintptr) {
		for range spin.Times {
			if _, err := Peek(fd, b[:]); !errors.Is(err, syscall.EAGAIN) {
				came = true
				g.Looked(true)
				return
			}
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
		}
		g.Looked(false)
	})
	return came
}
