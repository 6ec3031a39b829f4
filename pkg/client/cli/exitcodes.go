package cli

import (
	"errors"
	"fmt"

	"github.com/detour-dev/detour/pkg/rootless"
)

// The exit codes of detour. The reference documentation is generated from ExitCodes.
const (
	// ExitOK means that detour did what the command line says.
	ExitOK = 0
	// ExitFailure means that detour failed. One sentence on standard error says why.
	ExitFailure = 1
	// ExitCommandNotAllowed means that COMMAND could not be executed, as in a shell.
	ExitCommandNotAllowed = rootless.ExitNotAllowed
	// ExitCommandNotFound means that COMMAND was not found in $PATH, as in a shell.
	ExitCommandNotFound = rootless.ExitNotFound
	// ExitSignal plus the number of a signal means that the signal ended COMMAND, as in a shell.
	ExitSignal = 128
)

// ExitCode documents an exit code of detour.
type ExitCode struct {
	Code, Meaning string
}

// ExitCodes returns all exit codes, for the reference documentation.
func ExitCodes() []ExitCode {
	return []ExitCode{
		{fmt.Sprint(ExitOK), "Success."},
		{fmt.Sprint(ExitFailure), "detour failed. One sentence on standard error says what failed, why, and what to " +
			"do."},
		{"code of COMMAND", "With `detour run`, `detour shell` and `detour intercept ... -- COMMAND`: " +
			"COMMAND ended with this code."},
		{fmt.Sprint(ExitCommandNotAllowed), "COMMAND was found but could not be executed."},
		{fmt.Sprint(ExitCommandNotFound), "COMMAND was not found in `$PATH`."},
		{fmt.Sprintf("%d + N", ExitSignal), "Signal number N ended COMMAND."},
	}
}

// commandError carries the exit code of a command that detour ran. It becomes detour's own.
type commandError struct {
	code int
	err  error // what detour says about it; nil if the exit code says everything
}

func (e *commandError) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	return fmt.Sprintf("the command ended with exit code %d", e.code)
}

func (e *commandError) Unwrap() error { return e.err }

// startFailure returns the error of a command that did not start, with the exit code that a shell
// would return.
func startFailure(err error) error {
	var failed *rootless.StartError
	if errors.As(err, &failed) {
		return &commandError{code: failed.Code, err: err}
	}
	return err
}

// waitForCommand waits until p ends, and returns an error that carries its exit code unless that is
// 0.
func waitForCommand(p rootless.Process) error {
	code, err := p.Wait()
	if err != nil {
		return err
	}
	if code != ExitOK {
		return &commandError{code: code}
	}
	return nil
}

// withExitCode returns err, and lets detour end with the exit code of the command if that failed
// too.
func withExitCode(err, command error) error {
	var ended *commandError
	if errors.As(command, &ended) {
		return &commandError{code: ended.code, err: err}
	}
	return errors.Join(err, command)
}
