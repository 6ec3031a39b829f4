//go:build !linux

package tunnel

import (
	"net"
	"syscall"
)

// smallSendQueue does nothing: only Linux has the bound.
func smallSendQueue(string, string, syscall.RawConn) error { return nil }

// startupLimiter does nothing: only Linux has this BBR.
type startupLimiter struct{}

func newStartupLimiter(net.Conn) *startupLimiter { return &startupLimiter{} }

func (*startupLimiter) note(int) {}
