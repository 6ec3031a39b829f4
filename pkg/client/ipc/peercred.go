package ipc

import (
	"context"
	"errors"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/detour-dev/detour/pkg/client/credential"
)

// peerCredentials asks the kernel for the user at the other end of each connection to the socket.
type peerCredentials struct {
	credentials.TransportCredentials
}

// PeerCredentials returns the server's transport credentials that make Caller work.
func PeerCredentials() credentials.TransportCredentials {
	return peerCredentials{insecure.NewCredentials()}
}

// ServerHandshake implements credentials.TransportCredentials.
func (peerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	account, err := peerAccount(c)
	return c, authInfo{account}, err
}

// Clone implements credentials.TransportCredentials.
func (peerCredentials) Clone() credentials.TransportCredentials { return PeerCredentials() }

// authInfo carries the caller's account in a call's context.
type authInfo struct{ credential.Account }

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "unix" }

// Caller returns the account of the process that made the call with this context. The server must
// use PeerCredentials.
func Caller(ctx context.Context) (credential.Account, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.Account, nil
		}
	}
	return credential.Account{}, errors.New("the caller's account is unknown")
}

// IsTrusted reports whether an account may do everything that this process may do.
func IsTrusted(account credential.Account) bool {
	return account.UID == 0 || account.UID == os.Geteuid()
}
