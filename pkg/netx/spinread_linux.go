package netx

import (
	"errors"
	"net"
	"syscall"

	"github.com/detour-dev/detour/pkg/netx/spin"
)

// SpinUntilReadable polls a socket for a moment, if the policy says that this pays, and reports
// whether it has become readable. A caller that reads then does not fall asleep. See package spin
// for gain and cost.
func SpinUntilReadable(c net.Conn, policy *spin.Policy) (readable bool) {
	s, ok := c.(*Conn)
	if !ok || !policy.ShouldSpin() {
		return false
	}
	var b [1]byte
	_ = s.raw.Control(func(fd uintptr) {
		for range spin.Iterations {
			if _, err := Peek(fd, b[:]); !errors.Is(err, syscall.EAGAIN) {
				readable = true
				break
			}
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
		}
	})
	policy.Record(readable)
	return readable
}
