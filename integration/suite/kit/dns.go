package kit

import (
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// Question is a DNS question.
type Question struct {
	Name string
	Type uint16
	// Local tells that the laptop must know the answer itself.
	Local bool
}

// Resolver returns the address of this machine's DNS server, as every program finds it.
func Resolver(t *testing.T) string {
	t.Helper()
	c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	require.NoError(t, err)
	require.Len(t, c.Servers, 1)
	return net.JoinHostPort(c.Servers[0], "53")
}

// AskDNS asks a DNS server over a network: udp or tcp.
func AskDNS(server, network string, q Question) (*dns.Msg, error) {
	c := &dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(q.Name, q.Type).SetEdns0(4096, false), server)
	return m, err
}
