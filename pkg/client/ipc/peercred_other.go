//go:build !linux

package ipc

import (
	"net"
	"os"

	"github.com/detour-dev/detour/pkg/client/credential"
)

// GrantSocket does nothing: callers are not identified on this platform, so that a daemon serves
// only its own user.
func GrantSocket(Paths, int) error { return nil }

// peerAccount returns the daemon's own account: only its user may open the socket.
func peerAccount(net.Conn) (credential.Account, error) {
	return credential.Account{UID: os.Geteuid(), GID: os.Getegid()}, nil
}
