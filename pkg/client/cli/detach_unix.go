//go:build unix

package cli

import (
	"os/exec"
	"syscall"
)

// detachFromTerminal lets the daemon outlive the terminal that started it.
func detachFromTerminal(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
