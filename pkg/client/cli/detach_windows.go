package cli

import "os/exec"

// detachFromTerminal does nothing: on Windows a process does not end with its console.
func detachFromTerminal(*exec.Cmd) {}
