//go:build !linux

package vif

// letProgramGo does nothing where the kernel takes such pages back by itself, or cannot be asked.
func letProgramGo() {}
