package daemon

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

// peers have the kernel say who is at the other end of each connection to the socket.
type peers struct {
	credentials.TransportCredentials
}

func newPeers() credentials.TransportCredentials { return peers{insecure.NewCredentials()} }

// ServerHandshake implements credentials.TransportCredentials.
func (peers) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	who, err := peerOf(c)
	return c, asking{who}, err
}

// Clone implements credentials.TransportCredentials.
func (peers) Clone() credentials.TransportCredentials { return newPeers() }

// asking is who asks the daemon for something.
type asking struct{ credential.Account }

// AuthType implements credentials.AuthInfo.
func (asking) AuthType() string { return "unix" }

// whoAsks says whose call it is.
func whoAsks(ctx context.Context) (credential.Account, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.AuthInfo.(asking); ok {
			return a.Account, nil
		}
	}
	return credential.Account{}, errors.New("who asks is not known")
}

// trusted says whether somebody may do all that the daemon may.
func trusted(who credential.Account) bool { return who.UID == 0 || who.UID == os.Geteuid() }
