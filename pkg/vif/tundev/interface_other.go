//go:build !linux

package tundev

import (
	"fmt"
	"runtime"

	"golang.zx2c4.com/wireguard/tun"
)

// Open fails: there is no interface for this operating system yet.
func Open(Options) (tun.Device, HostInterface, error) {
	return nil, nil, fmt.Errorf(
		"detour cannot make its network interface on %s yet: use Linux, or a Linux virtual machine", runtime.GOOS)
}
