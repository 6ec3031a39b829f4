//go:build !linux

package inside

import "errors"

// Start fails: there are no namespaces here.
func Start(int, []string, []string) (Process, error) {
	return nil, errors.New("`detour run` is there on Linux only")
}
