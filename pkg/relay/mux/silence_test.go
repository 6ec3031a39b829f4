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
	ask := func(s *Stream, what string) (*Delivery, chan struct{}) {
		untaken := make(chan struct{}, 1)
		q := s.Track(func() { untaken <- struct{}{} })
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
	require.False(t, lost.Done(), "it may be said to somebody else")
	later, untakenToo := ask(s, "3")
	<-untakenToo
	require.False(t, later.Done())

	gate.Unlock()
	close(answers)
	_, err := waits.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, taken.Done())
	require.Empty(t, never)
	require.Eventually(t, func() bool { return !isSilent(c) }, patience, time.Millisecond)
	again, _ := ask(waits, "4")
	_, err = waits.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, again.Done())
	assert.Empty(t, fell)
	// With nothing to answer nobody is asked.
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.beating && c.pings == c.pongs && len(c.questions) == 0
	}, patience, time.Millisecond)
}

// A connection that is cut because others found the other end gone first: what that end was not heard of is not taken, as if it had been silent for long enough.
// What is cut while it speaks it may have taken, also when it is so far away that no answer can have come yet.
func TestCutWhileSilent(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		away           time.Duration // that the answers are
		stopped, taken bool
	}{
		"silent for a while":           {0, true, false},
		"in mid-sentence":              {0, false, true},
		"far away, and well":           {3 * beat, false, true},
		"far away, silent for a while": {3 * beat, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			gate := &gated{Conn: b}
			c := New(&distant{Conn: a, away: test.away}, nil)
			took := make(chan struct{})
			there := New(gate, process(t, func(c *net.TCPConn) {
				_, _ = io.ReadFull(c, make([]byte, 4))
				close(took)
				_, _ = io.Copy(io.Discard, c)
			}))
			var running sync.WaitGroup
			running.Go(func() { _ = c.Run() })
			running.Go(func() { _ = there.Run() })
			s := stream(t, c)
			require.Eventually(t, func() bool { // what is usual is known
				c.mu.Lock()
				defer c.mu.Unlock()
				return !c.beating && c.pings == c.pongs
			}, patience, time.Millisecond)
			missed := func(more func(missed, usual int) bool) func() bool {
				return func() bool {
					c.mu.Lock()
					defer c.mu.Unlock()
					return more(c.missed, c.usual)
				}
			}
			if test.stopped {
				gate.Lock()
			}
			q := s.Track(func() { t.Error("nobody is silent for long enough") })
			_, err := s.Write([]byte("POST"))
			require.NoError(t, err)
			if !test.stopped {
				<-took
			}
			switch {
			case test.stopped:
				require.Eventually(t, missed(func(missed, usual int) bool { return missed > usual }), patience, time.Millisecond)
			case test.away > 0:
				require.Eventually(t, missed(func(missed, _ int) bool { return missed > 0 }), patience, time.Millisecond)
			}
			c.fail(nil)
			_, err = s.Read(make([]byte, 1))
			require.ErrorIs(t, err, ErrConnLost)
			require.Equal(t, test.taken, q.Done())
			if test.stopped {
				gate.Unlock()
			}
			running.Wait()
		})
	}
}

// distant is an end whose words take their time to come.
type distant struct {
	net.Conn
	away time.Duration
}

func (d *distant) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	time.Sleep(d.away)
	return n, err
}

// isSilent says whether the other end has fallen silent.
func isSilent(c *Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.silent
}
