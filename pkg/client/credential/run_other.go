//go:build !linux

package credential

import "errors"

// run is not used on this platform: a daemon of root serves only root.
func (plugin) run(string) error {
	return errors.New("only on Linux can the daemon of root start the credential plugins of users")
}
