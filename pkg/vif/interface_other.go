//go:build !linux

package vif

import (
	"fmt"
	"runtime"

	"golang.zx2c4.com/wireguard/tun"
)

func createTUN(string, int) (tun.Device, hostInterface, error) {
	return nil, nil, fmt.Errorf("detour cannot make its network interface on %s yet: use Linux, or a Linux virtual machine", runtime.GOOS)
}
