//go:build !linux

package daemon

import (
	"net"
	"os"

	"github.com/detour-dev/detour/pkg/client/credential"
)

// give does nothing: who connects is not asked here, so that a daemon serves only its own user.
func give(string, int) error { return nil }

// peerOf is the daemon's own user, whose the socket is.
func peerOf(net.Conn) (credential.Account, error) {
	return credential.Account{UID: os.Geteuid(), GID: os.Getegid()}, nil
}
