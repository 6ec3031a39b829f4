package rootless

import (
	"fmt"
	"os/exec"
)

// Process is a command that was started.
type Process interface {
	// Wait returns the exit code as a shell reports it: after a signal, 128 and the signal's
	// number.
	Wait() (int, error)
	// Terminate sends the command a SIGTERM.
	Terminate()
}

// These are the exit codes of shells for a command that could not be started.
const (
	ExitNotFound   = 127
	ExitNotAllowed = 126
)

// StartError is why a command could not be started, with the exit code that a shell would give.
type StartError struct {
	Name string
	Code int
	Err  error
}

func (e *StartError) Error() string { return fmt.Sprintf("start %s: %v", e.Name, e.Err) }
func (e *StartError) Unwrap() error { return e.Err }

// find looks a command up in $PATH.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &StartError{Name: name, Code: ExitNotFound, Err: err}
	}
	return path, nil
}
