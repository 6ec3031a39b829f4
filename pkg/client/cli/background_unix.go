//go:build unix

package cli

import (
	"os/exec"
	"syscall"
)

// background lets the daemon outlive its terminal.
func background(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
