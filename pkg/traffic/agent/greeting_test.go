package agent

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// greets is an HTTP/2 server that says its SETTINGS before its client has said anything, as gRPC's does, and acknowledges pings with data
// of its own.
func greets(name byte) func(net.Conn) {
	return func(c net.Conn) {
		f := http2.NewFramer(c, c)
		if f.WriteSettings() != nil {
			return
		}
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			if _, ok := frame.(*http2.PingFrame); ok && f.WritePing(true, [8]byte{name}) != nil {
				return
			}
		}
	}
}

// A server of HTTP/2 may greet before its client. Its connection is one of HTTP/2 nevertheless, which is asked to leave when it has to move.
func TestServerGreetsFirst(t *testing.T) {
	m := newLaptop(t, ok, greets('l'))
	for _, change := range []struct {
		name          string
		before, after func(*pod)
		answers       byte
	}{
		{"from the app to the laptop", (*pod).leave, func(p *pod) { p.intercept(m.address) }, 'a'},
		{"from the laptop to the app", func(p *pod) { p.intercept(m.address) }, (*pod).leave, 'l'},
		{"from the laptop to a person", func(p *pod) { p.intercept(m.address) }, func(p *pod) { p.setRoutes([]*agentv1.Intercept{p.person("alice", m.address)}) }, 'l'},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %t", change.name, late), func(t *testing.T) {
				p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { greets('a')(c) }), m.authority)
				change.before(p)
				c := p.dial(t)
				f := http2.NewFramer(c, c)
				frame, err := f.ReadFrame()
				require.NoError(t, err)
				require.Equal(t, http2.FrameSettings, frame.Header().Type)
				if late { // the change comes between the greeting and the client's
					change.after(p)
				}
				_, err = c.Write([]byte(http2.ClientPreface))
				require.NoError(t, err)
				require.NoError(t, f.WriteSettings())
				if !late {
					require.NoError(t, f.WritePing(false, [8]byte{}))
					frame, err := f.ReadFrame()
					require.NoError(t, err)
					require.Equal(t, change.answers, frame.(*http2.PingFrame).Data[0])
					change.after(p)
				}
				frame, err = f.ReadFrame()
				require.NoError(t, err)
				require.Equal(t, http2.FrameGoAway, frame.Header().Type)
			})
		}
	}
}
