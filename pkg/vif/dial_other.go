//go:build !linux

package vif

import "syscall"

func setUserTimeout(string, string, syscall.RawConn) error { return nil }
