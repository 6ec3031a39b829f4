//go:build !linux

package credential

import "errors"

// run is not asked here: the daemon of root serves nobody else.
func (plugin) run(string) error {
	return errors.New("a daemon of root starts credential plugins of users on Linux only")
}
