package mux

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// gated is an end that can be stopped: it reads nothing then.
type gated struct {
	net.Conn
	sync.Mutex
}

func (g *gated) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	g.Lock() // what it has read it has not seen while it is stopped
	defer g.Unlock()
	return n, err
}

// An end that has fallen silent is noticed, with what it has not taken; what it has taken it may still answer.
func TestSilence(t *testing.T) {
	t.Parallel()
	answers := make(chan struct{})
	a, b := pair(t)
	gate := &gated{Conn: b}
	fell := make(chan struct{}, 10)
	c := New(a, nil)
	c.OnSilence(func() { fell <- struct{}{} })
	there := New(gate, process(t, func(c *net.TCPConn) {
		got := make([]byte, 1)
		for {
			if _, err := io.ReadFull(c, got); err != nil {
				return
			}
			if got[0] == 'w' {
				<-answers
			}
			_, _ = c.Write(got)
		}
	}))
	var running sync.WaitGroup
	running.Go(func() { _ = c.Run() })
	running.Go(func() { _ = there.Run() })
	t.Cleanup(func() { c.fail(nil); running.Wait() })
	ask := func(s *Stream, what string) (*Question, chan struct{}) {
		untaken := make(chan struct{}, 1)
		q := s.Ask(func() { untaken <- struct{}{} })
		_, err := s.Write([]byte(what))
		require.NoError(t, err)
		return q, untaken
	}
	s := stream(t, c)
	says(t, s, "1")
	// The process waits; its end does not, and is not taken for silent.
	waits := stream(t, c)
	taken, never := ask(waits, "w")
	time.Sleep((silence + 2) * beat)
	require.False(t, isSilent(c))

	gate.Lock()
	lost, untaken := ask(s, "2")
	<-untaken
	<-fell
	require.True(t, isSilent(c))
	require.False(t, lost.Answered(), "it may be said to somebody else")
	later, untakenToo := ask(s, "3")
	<-untakenToo
	require.False(t, later.Answered())

	gate.Unlock()
	close(answers)
	_, err := waits.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, taken.Answered())
	require.Empty(t, never)
	require.Eventually(t, func() bool { return !isSilent(c) }, patience, time.Millisecond)
	again, _ := ask(waits, "4")
	_, err = waits.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, again.Answered())
	assert.Empty(t, fell)
	// With nothing to answer nobody is asked.
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.beating && c.pings == c.pongs && len(c.questions) == 0
	}, patience, time.Millisecond)
}

// isSilent says whether the other end has fallen silent.
func isSilent(c *Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.silent
}
