package agent

import (
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/netx"
)

// If a laptop is lost in the middle of its answer, the client must not take half of the answer
// for the whole.
func TestLaptopLostInItsAnswer(t *testing.T) {
	reset := make(chan struct{})
	m := newLaptop(t, ok, func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 5))
		_, _ = io.WriteString(c, "half ")
		<-reset
		raw := netx.Below(c).(*net.TCPConn)
		_ = raw.SetLinger(0)
		_ = raw.Close()
	})
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	c := p.dial(t)
	_, err := io.WriteString(c, "half ")
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 5))
	require.NoError(t, err)
	close(reset)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}
