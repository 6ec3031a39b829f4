package agent

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/agent/attach"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// An attached agent gives the kubelet's probes to the app, whatever is intercepted.
func TestAppGetsProbes(t *testing.T) {
	a := newAgent(nil, nil)
	a.table.SetProbed(map[uint16]bool{8080: true})
	a.table.Set([]*agentv1.Intercept{
		{Uid: "all", Port: 8080},
		{Uid: "some", Port: 8080, Match: &agentv1.Match{Path: "/healthz"}},
	})
	from := func(agent string) *route.Request {
		return &route.Request{Method: "GET", Target: "/healthz", Values: func(name string) []string {
			if name == "user-agent" {
				return []string{agent}
			}
			return nil
		}}
	}
	want := a.table.Choose(8080, from("kube-probe/1.34")).Laptop
	assert.Nil(t, want)
	want = a.table.Choose(8080, from("curl/8")).Laptop
	assert.Equal(t, "some", want.Uid)
	a.table.SetProbed(nil)
	a.table.Set([]*agentv1.Intercept{{Uid: "all", Port: 8080}})
	want = a.table.Choose(8080, from("kube-probe/1.34")).Laptop
	assert.Equal(t, "all", want.Uid, "where no probe is to be expected")
}

// An attached agent that nobody needs asks its clients to open other connections, which bypass
// it, until an intercept needs it again.
func TestUnusedAgentAsksItsClientsToLeave(t *testing.T) {
	p, _, _ := ending(t)
	p.attachment = new(attach.Attachment)
	intercepted := []*agentv1.Intercept{p.table.Port(p.port).Personal[0].Intercept}
	ask := func(b *browser) (closes bool) {
		_, err := fmt.Fprint(b, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		answer, err := http.ReadResponse(b.in, nil)
		require.NoError(t, err)
		assert.Equal(t, "app / ", text(t, answer))
		return answer.Close
	}
	p.table.Set(nil)
	b, other := p.browse(t), p.browse(t)
	assert.False(t, ask(b))
	assert.False(t, ask(other))
	p.podEnds() // as endUnused does
	p.tellConnections()
	assert.True(t, ask(b))
	_, err := b.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	p.table.Set(intercepted)
	assert.False(t, ask(other))
}
