package agent

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/relay/datagram"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/udp"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// udpApp returns the port of an app that sends each datagram back after "app", from the address
// that it was sent to.
func udpApp(t *testing.T) uint16 { return udpAppOn(t, ipv4Of) }

func udpAppOn(t *testing.T, of func([]*udp.Socket) *udp.Socket) uint16 {
	t.Helper()
	all, err := udp.Listen(t.Context(), 0)
	require.NoError(t, err)
	var serving sync.WaitGroup
	for _, s := range all {
		serving.Go(func() {
			for b := make([]byte, datagram.MaxPayload); ; {
				n, from, local, err := s.Read(b)
				if err != nil {
					return
				}
				_ = s.Write(append([]byte("app "), b[:n]...), from, local)
			}
		})
	}
	t.Cleanup(func() {
		for _, s := range all {
			_ = s.Close()
		}
		serving.Wait()
	})
	return portOf(of(all))
}

func portOf(s *udp.Socket) uint16 { return uint16(s.LocalAddr().(*net.UDPAddr).Port) }

func ipv4Of(all []*udp.Socket) *udp.Socket { return all[0] }

// newUDPPod returns an agent in front of a UDP port of the app.
func newUDPPod(t *testing.T, appPort uint16, m *fakeLaptop) (p *pod, agentPort uint16) {
	t.Helper()
	p = newPod(t, "127.0.0.1", appPort, m.authority)
	sockets, err := udp.Listen(t.Context(), 0)
	require.NoError(t, err)
	agentPort = portOf(ipv4Of(sockets))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	d := p.newUDPPort(appPort, sockets)
	serving.Go(func() { d.Serve(ctx) })
	t.Cleanup(func() { cancel(); serving.Wait() })
	return p, agentPort
}

func (p *pod) interceptDatagrams(address string) {
	p.table.Set([]*agentv1.Intercept{{Uid: "udp", Port: uint32(p.port), RelayAddress: address, Datagrams: true}})
}

func dialUDP(t *testing.T, host string, port uint16) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(host), port).String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echo sends a datagram and returns the answer.
func echo(t *testing.T, c net.Conn, said string) string {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	_, err := c.Write([]byte(said))
	require.NoError(t, err)
	b := make([]byte, datagram.MaxPayload)
	n, err := c.Read(b)
	require.NoError(t, err)
	return string(b[:n])
}

// frames returns a laptop that answers the frames of datagrams: the payload comes back after the
// laptop's name and the number of the flow.
func frames(refuse bool) func(net.Conn) {
	return func(c net.Conn) {
		in, buffer := bufio.NewReader(c), make([]byte, datagram.MaxPayload)
		for {
			f, err := datagram.Read(in, buffer)
			if err != nil {
				return
			}
			answer := datagram.Frame{Kind: datagram.Pong}
			if f.Kind == datagram.Data {
				answer = datagram.Frame{
					Kind: datagram.Data, Flow: f.Flow, Payload: fmt.Appendf(nil, "laptop %d %s", f.Flow, f.Payload),
				}
				if refuse {
					answer = datagram.Frame{Kind: datagram.Refused, Flow: f.Flow}
				}
			}
			if _, err := c.Write(answer.Append(nil)); err != nil {
				return
			}
		}
	}
}

// Each datagram goes where its port belongs when it arrives, and its answer comes from the
// address that it was sent to.
func TestDatagramsFollowIntercepts(t *testing.T) {
	m := newLaptop(t, ok, frames(false))
	p, port := newUDPPod(t, udpApp(t), m)
	one, two, other := dialUDP(t, "127.0.0.1", port), dialUDP(t, "127.0.0.1", port), dialUDP(t, "127.0.0.2", port)
	for range 2 {
		for _, c := range []net.Conn{one, two, other} {
			assert.Equal(t, "app a", echo(t, c, "a"))
		}
		assert.Equal(t, "app ", echo(t, one, ""), "an empty datagram is one")
		large := string(make([]byte, 60_000))
		assert.Equal(t, "app "+large, echo(t, one, large))

		p.interceptDatagrams(m.address)
		assert.Equal(t, "laptop 1 a", echo(t, one, "a"))
		assert.Equal(t, "laptop 2 a", echo(t, other, "a"))
		assert.Equal(t, "laptop 1 b", echo(t, one, "b"))
		assert.Equal(t, "laptop 1 "+large, echo(t, one, large))
		header := <-m.headers
		assert.True(t, header.Datagrams)
		assert.Equal(t, "udp", header.InterceptUid)
		assert.Empty(t, m.headers, "one relayed connection carries them all")
		p.table.Set(nil)
	}
}

func TestDatagramsOverIPv6(t *testing.T) {
	m := newLaptop(t, ok, frames(false))
	sockets, err := udp.Listen(t.Context(), 0)
	require.NoError(t, err)
	if len(sockets) < 2 {
		t.Skip("there is no IPv6 here")
	}
	appPort := udpAppOn(t, func(all []*udp.Socket) *udp.Socket { return all[1] })
	p := newPod(t, "127.0.0.1", appPort, m.authority)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	d := p.newUDPPort(appPort, sockets)
	serving.Go(func() { d.Serve(ctx) })
	t.Cleanup(func() { cancel(); serving.Wait() })
	assert.Equal(t, "app a", echo(t, dialUDP(t, "::1", portOf(sockets[1])), "a"))
	p.interceptDatagrams(m.address)
	assert.Equal(t, "laptop 1 a", echo(t, dialUDP(t, "::1", portOf(sockets[1])), "a"))
}

// Whatever is wrong with the laptop, the app answers: the datagram itself if that is known at
// once, and otherwise those that follow.
func TestDatagramsFailOpen(t *testing.T) {
	t.Parallel()
	t.Run("nobody listens on the laptop", func(t *testing.T) {
		m := newLaptop(t, ok, frames(true))
		p, port := newUDPPod(t, udpApp(t), m)
		p.interceptDatagrams(m.address)
		c := dialUDP(t, "127.0.0.1", port)
		for range 5 {
			assert.Equal(t, "app a", echo(t, c, "a"))
		}
	})
	t.Run("the laptop is not reachable", func(t *testing.T) {
		m := newLaptop(t, agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE, nil)
		p, port := newUDPPod(t, udpApp(t), m)
		p.interceptDatagrams(m.address)
		c := dialUDP(t, "127.0.0.1", port)
		for range 5 {
			assert.Equal(t, "app a", echo(t, c, "a"))
		}
	})
	t.Run("the laptop falls silent", func(t *testing.T) {
		m := newLaptop(t, ok, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); time.Sleep(2 * laptop.PongTimeout) })
		p, port := newUDPPod(t, udpApp(t), m)
		p.interceptDatagrams(m.address)
		c := dialUDP(t, "127.0.0.1", port)
		got := make([]byte, 100)
		require.Eventually(t, func() bool {
			_, err := c.Write([]byte("a"))
			require.NoError(t, err)
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := c.Read(got)
			return err == nil && string(got[:n]) == "app a"
		}, patience, time.Millisecond)
	})
	t.Run("the relay breaks off", func(t *testing.T) {
		m := newLaptop(t, ok, func(net.Conn) {})
		p, port := newUDPPod(t, udpApp(t), m)
		p.interceptDatagrams(m.address)
		c := dialUDP(t, "127.0.0.1", port)
		got := make([]byte, 100)
		require.Eventually(t, func() bool {
			_, err := c.Write([]byte("a"))
			require.NoError(t, err)
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := c.Read(got)
			return err == nil && string(got[:n]) == "app a"
		}, patience, time.Millisecond)
	})
}
