//go:build linux

package passthrough

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below never block, so they do not tell Go's scheduler of themselves.
//
// Gain: without them the scheduler gives the processor away when a call takes 20 µs, and its
// monitor looks every 20 µs. For the same calls in pkg/netx that was 14 to 17 % of the agent's
// processor time. Cost: none, as long as the descriptors are non-blocking. Measured in the
// laboratory (docs/design/performance-log.md); BenchmarkRawSyscall compares them with the plain
// calls.

// readRaw is read(2).
func readRaw(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(
		unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// writeRaw is send(2) without the signal SIGPIPE.
func writeRaw(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO,
		uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// pollRaw is epoll_wait(2) with a timeout of zero.
func pollRaw(epoll int, events []unix.EpollEvent) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT,
		uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// yieldRaw is sched_yield(2).
func yieldRaw() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
