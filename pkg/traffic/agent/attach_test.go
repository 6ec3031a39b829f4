package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/route"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// An attached agent leaves the kubelet's probes to the app, whatever is intercepted.
func TestProbesAreTheApps(t *testing.T) {
	a := newAgent(nil, nil)
	a.attachment = &attachment{probed: map[uint16]bool{8080: true}}
	a.setRoutes([]*agentv1.Intercept{{Uid: "all", Port: 8080}, {Uid: "some", Port: 8080, Match: &agentv1.Match{Path: "/healthz"}}})
	from := func(agent string) *route.Request {
		return &route.Request{Method: "GET", Target: "/healthz", Values: func(name string) []string {
			if name == "user-agent" {
				return []string{agent}
			}
			return nil
		}}
	}
	want := a.choose(8080, from("kube-probe/1.34")).laptop
	assert.Nil(t, want)
	want = a.choose(8080, from("curl/8")).laptop
	assert.Equal(t, "some", want.Uid)
	a.attachment.probed = nil
	a.setRoutes([]*agentv1.Intercept{{Uid: "all", Port: 8080}})
	want = a.choose(8080, from("kube-probe/1.34")).laptop
	assert.Equal(t, "all", want.Uid, "where no probe is to be expected")
}

// An attached agent that nobody needs any more asks its clients to go past it, until it is needed again.
func TestUnneededAgentIsLeft(t *testing.T) {
	p, _, _ := ending(t)
	p.attachment = &attachment{}
	intercepted := []*agentv1.Intercept{(*p.tables.Load())[p.port].personal[0].Intercept}
	ask := func(b *browser) (closes bool) {
		_, err := fmt.Fprint(b, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		answer, err := http.ReadResponse(b.in, nil)
		require.NoError(t, err)
		assert.Equal(t, "app / ", text(t, answer))
		return answer.Close
	}
	p.setRoutes(nil)
	b, other := p.browse(t), p.browse(t)
	assert.False(t, ask(b))
	assert.False(t, ask(other))
	p.podEnds() // as endUnused does
	p.tellChanged()
	assert.True(t, ask(b))
	_, err := b.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	p.setRoutes(intercepted)
	assert.False(t, ask(other))
}

func TestConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	ports := map[uint16]uint16{8080: uint16(l.Addr().(*net.TCPAddr).Port)}
	assert.False(t, connections(ports), "a listener is none")
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	assert.True(t, connections(ports))

	for line, want := range map[string]bool{
		"sl local_address rem_address st":              false,
		"0: 00000000:26AC 00000000:0000 0A":            false,
		"1: 0100007F:26AC 0100007F:C000 01 00000000:0": true,
		"1: 0100007F:26AC 0100007F:C000 06 00000000:0": false,
		"1: 0100007F:C000 0100007F:26AC 01 00000000:0": false,
		"": false,
	} {
		assert.Equal(t, want, connectedIn(bufio.NewScanner(strings.NewReader(line)), map[string]bool{"26AC": true}), line)
	}
}
