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

// pausedConn stops receiving while its lock is held.
type pausedConn struct {
	net.Conn
	sync.Mutex
}

func (p *pausedConn) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.Lock() // bytes that arrive while it is paused are not seen
	defer p.Unlock()
	return n, err
}

// delayedConn receives everything later.
type delayedConn struct {
	net.Conn
	delay time.Duration
}

func (d *delayedConn) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	time.Sleep(d.delay)
	return n, err
}

func isSilent(c *Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ka.silent
}

// keepaliveAtRest reports whether all pings are answered and no tick is due.
func keepaliveAtRest(c *Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ka.ticking && c.ka.pings == c.ka.pongs
}

// A peer that falls silent is noticed, and with it the deliveries that it has not received. It may
// still answer the ones that it has received.
func TestSilentPeerLosesDeliveriesItHasNotReceived(t *testing.T) {
	t.Parallel()
	answers := make(chan struct{})
	a, b := pair(t)
	pause := &pausedConn{Conn: b}
	silences := make(chan struct{}, 10)
	c := New(a, nil)
	c.OnSilence(func() { silences <- struct{}{} })
	accepting := New(pause, process(t, func(c *net.TCPConn) {
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
	running.Go(func() { _ = accepting.Run() })
	t.Cleanup(func() { c.fail(nil); running.Wait() })
	send := func(s *Stream, text string) (*Delivery, chan struct{}) {
		lost := make(chan struct{}, 1)
		d := s.Track(func() { lost <- struct{}{} })
		_, err := s.Write([]byte(text))
		require.NoError(t, err)
		return d, lost
	}
	s := openStream(t, c)
	requireEcho(t, s, "1")
	// The process takes its time to answer. Its end of the connection does not, and does not count
	// as silent.
	slow := openStream(t, c)
	received, neverLost := send(slow, "w")
	time.Sleep((silentTicks + 2) * tickInterval)
	require.False(t, isSilent(c))

	pause.Lock()
	before, beforeLost := send(s, "2")
	<-beforeLost
	<-silences
	require.True(t, isSilent(c))
	require.False(t, before.Done(), "it may be sent to somebody else")
	during, duringLost := send(s, "3")
	<-duringLost
	require.False(t, during.Done())

	pause.Unlock()
	close(answers)
	_, err := slow.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, received.Done())
	require.Empty(t, neverLost)
	require.Eventually(t, func() bool { return !isSilent(c) }, patience, time.Millisecond)
	after, _ := send(slow, "4")
	_, err = slow.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, after.Done())
	assert.Empty(t, silences)
	// An end with nothing to deliver sends no pings.
	require.Eventually(t, func() bool { return keepaliveAtRest(c) }, patience, time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Empty(t, c.ka.deliveries)
}

// When a connection is cut because somebody else found the peer gone first, its deliveries are lost
// if the peer's pong is overdue. If the peer was well, it may have received them, even if it is so
// far away that no pong can have arrived yet.
func TestCutConnectionLosesDeliveriesOnlyIfThePongIsOverdue(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		delay    time.Duration // of the pongs
		paused   bool
		received bool
	}{
		"a near peer that is silent": {paused: true, received: false},
		"a near peer that is well":   {paused: false, received: true},
		"a far peer that is well":    {delay: 3 * tickInterval, paused: false, received: true},
		"a far peer that is silent":  {delay: 3 * tickInterval, paused: true, received: false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			pause := &pausedConn{Conn: b}
			c := New(&delayedConn{Conn: a, delay: test.delay}, nil)
			took := make(chan struct{})
			accepting := New(pause, process(t, func(c *net.TCPConn) {
				_, _ = io.ReadFull(c, make([]byte, 4))
				close(took)
				_, _ = io.Copy(io.Discard, c)
			}))
			var running sync.WaitGroup
			running.Go(func() { _ = c.Run() })
			running.Go(func() { _ = accepting.Run() })
			s := openStream(t, c)
			// From here on the usual delay is known.
			require.Eventually(t, func() bool { return keepaliveAtRest(c) }, patience, time.Millisecond)
			missed := func(enough func(missed, usual int) bool) func() bool {
				return func() bool {
					c.mu.Lock()
					defer c.mu.Unlock()
					return enough(c.ka.missed, c.ka.usual)
				}
			}
			if test.paused {
				pause.Lock()
			}
			d := s.Track(func() { t.Error("the peer was not silent for long enough") })
			_, err := s.Write([]byte("POST"))
			require.NoError(t, err)
			if !test.paused {
				<-took
			}
			switch {
			case test.paused:
				overdue := func(missed, usual int) bool { return missed > usual }
				require.Eventually(t, missed(overdue), patience, time.Millisecond)
			case test.delay > 0:
				late := func(missed, _ int) bool { return missed > 0 }
				require.Eventually(t, missed(late), patience, time.Millisecond)
			}
			c.fail(nil)
			_, err = s.Read(make([]byte, 1))
			require.ErrorIs(t, err, ErrConnLost)
			require.Equal(t, test.received, d.Done())
			if test.paused {
				pause.Unlock()
			}
			running.Wait()
		})
	}
}
