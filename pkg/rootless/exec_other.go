//go:build !linux

package rootless

import "errors"

// Exec fails: there are no namespaces here.
func Exec(int, []string, []string) (Process, error) {
	return nil, errors.New("`detour run` works on Linux only")
}
