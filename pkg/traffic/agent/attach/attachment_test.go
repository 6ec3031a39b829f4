package attach

import (
	"bufio"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestConnectedSeesOpenConnectionsOnly(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	ports := map[uint16]uint16{8080: uint16(l.Addr().(*net.TCPAddr).Port)}
	assert.False(t, connected(ports), "a listener is not a connection")
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	assert.True(t, connected(ports))

	for line, want := range map[string]bool{
		"sl local_address rem_address st":              false,
		"0: 00000000:26AC 00000000:0000 0A":            false,
		"1: 0100007F:26AC 0100007F:C000 01 00000000:0": true,
		"1: 0100007F:26AC 0100007F:C000 06 00000000:0": false,
		"1: 0100007F:C000 0100007F:26AC 01 00000000:0": false,
		"": false,
	} {
		assert.Equal(t, want,
			connectedIn(bufio.NewScanner(strings.NewReader(line)), map[string]bool{"26AC": true}), line)
	}
}
