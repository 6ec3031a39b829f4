package tunnel

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestStartupLimiter(t *testing.T) {
	const path = 2_400_000 // bytes a second
	startup := func(retransmitted uint64) bbrState {
		return bbrState{retransmitted: retransmitted, rate: path, pacingGain: startupGain, cwndGain: startupGain}
	}
	at := func(retransmitted, rate uint64, pacing, cwnd uint32) bbrState {
		return bbrState{retransmitted: retransmitted, rate: rate, pacingGain: pacing, cwndGain: cwnd}
	}
	const lost = overloadBytes
	type look struct {
		state bbrState
		rate  int  // that judge sets
		done  bool // judge wants no further look
	}
	for _, c := range []struct {
		name  string
		looks []look
	}{
		{name: "nothing is lost", looks: []look{{state: startup(0)}, {state: startup(0)}, {state: startup(lost - 1)}}},
		{
			name:  "bytes are lost once",
			looks: []look{{state: startup(lost)}, {state: startup(lost)}, {state: startup(2 * lost)}},
		},
		{name: "the line is overfilled and BBR recovers", looks: []look{
			{state: startup(lost)},
			{state: startup(2 * lost), rate: path * 7 / 8},
			{state: startup(9 * lost)},
			{state: at(9*lost, path, 88, startupGain)},
			{state: at(9*lost, path, 320, cruiseGain), rate: unlimited, done: true},
		}},
		{name: "the limit does not help", looks: []look{
			{state: startup(lost)},
			{state: startup(2 * lost), rate: path * 7 / 8},
			{state: startup(2 * lost)},
			{state: startup(2 * lost)},
			{state: startup(2 * lost)},
			{state: startup(3 * lost)},
			{state: startup(4 * lost)},
			{state: startup(5 * lost)},
			{state: startup(6 * lost), rate: unlimited},
			{state: startup(7 * lost)},
			{state: startup(8 * lost), rate: path * 7 / 8},
		}},
		{name: "BBR measures the path", looks: []look{
			{state: at(0, path, 256, 256)}, {state: at(lost, path, 256, 256)}, {state: at(2*lost, path, 256, 256)},
		}},
		{name: "the rate is too low to limit", looks: []look{
			{state: at(lost, 1, startupGain, startupGain)}, {state: at(2*lost, 1, startupGain, startupGain)},
		}},
		{name: "the rate is too high to limit", looks: []look{
			{state: at(lost, maxRate, startupGain, startupGain)},
			{state: at(2*lost, maxRate, startupGain, startupGain)},
		}},
		{name: "STARTUP is over", looks: []look{{state: at(0, path, 256, cruiseGain), rate: unlimited, done: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l startupLimiter
			now := time.Unix(1e9, 0)
			for i, look := range c.looks {
				rate, again := l.judge(look.state, now)
				require.Equal(t, look.rate, rate, "look %d", i)
				require.Equal(t, look.done, !again, "look %d", i)
				now = now.Add(checkInterval)
			}
		})
	}
}

// A look costs system calls, so the limiter looks only at bulk, and only over BBR.
func TestStartupLimiterLooksOnlyAtBulkOverBBR(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	for _, congestion := range []string{"reno", "bbr"} {
		c, err := net.Dial("tcp", listener.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		b := newStartupLimiter(c)
		require.NotNil(t, b.raw)
		var failed error
		err = b.raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		})
		require.NoError(t, err)
		if failed != nil {
			t.Skipf("this kernel has no %s: %v", congestion, failed)
		}
		b.note(bulkWrite - 1)
		require.Zero(t, b.checked)
		b.note(bulkWrite)
		require.NotZero(t, b.checked)
		require.Equal(t, congestion == "bbr", b.raw != nil)
	}
	unknown, other := net.Pipe()
	defer unknown.Close()
	defer other.Close()
	newStartupLimiter(unknown).note(bulkWrite)
}
