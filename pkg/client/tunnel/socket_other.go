//go:build !linux

package tunnel

import (
	"net"
	"syscall"
)

// smallSendQueue does nothing where the kernel has no such bound.
func smallSendQueue(string, string, syscall.RawConn) error { return nil }

// brake does nothing: who has Linux's BBR has Linux.
type brake struct{}

func newBrake(net.Conn) *brake { return &brake{} }

func (*brake) note(int) {}
