//go:build !linux

package tunnel

import "syscall"

// smallSendQueue does nothing where the kernel has no such bound.
func smallSendQueue(string, string, syscall.RawConn) error { return nil }
