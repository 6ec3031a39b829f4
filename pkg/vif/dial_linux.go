package vif

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func setUserTimeout(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond)) // UDP has none
	})
}
