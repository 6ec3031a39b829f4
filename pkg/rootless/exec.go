package rootless

import (
	"fmt"
	"os/exec"
)

// Process is a command that was started.
type Process interface {
	// Wait returns the exit code as a shell would say it: 128 and the signal's number after a signal.
	Wait() (int, error)
	// Terminate asks it to end.
	Terminate()
}

// ExitCode of a command that could not be started, as shells have it.
const (
	ExitNotFound   = 127
	ExitNotAllowed = 126
)

// StartError says why a command could not be started, and which exit code says so too.
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
