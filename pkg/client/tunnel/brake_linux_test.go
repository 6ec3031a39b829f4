package tunnel

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBrake(t *testing.T) {
	const path = 2_400_000
	begins := func(again uint64) reading { return reading{again, path, startupGain, startupGain} }
	type look struct {
		reading
		rate   int
		goesOn bool
	}
	for name, looks := range map[string][]look{
		"nothing is lost": {{begins(0), 0, true}, {begins(0), 0, true}, {begins(brakeLost - 1), 0, true}},
		"lost once":       {{begins(brakeLost), 0, true}, {begins(brakeLost), 0, true}, {begins(2 * brakeLost), 0, true}},
		"it overfills the line": {
			{begins(brakeLost), 0, true},
			{begins(2 * brakeLost), path * 7 / 8, true},
			{begins(9 * brakeLost), 0, true},
			{reading{9 * brakeLost, path, 88, startupGain}, 0, true},
			{reading{9 * brakeLost, path, 320, cruiseGain}, unbound, false},
		},
		"it was in vain": {
			{begins(brakeLost), 0, true},
			{begins(2 * brakeLost), path * 7 / 8, true},
			{begins(2 * brakeLost), 0, true},
			{begins(2 * brakeLost), 0, true},
			{begins(2 * brakeLost), 0, true},
			{begins(3 * brakeLost), 0, true},
			{begins(4 * brakeLost), 0, true},
			{begins(5 * brakeLost), 0, true},
			{begins(6 * brakeLost), unbound, true},
			{begins(7 * brakeLost), 0, true},
			{begins(8 * brakeLost), path * 7 / 8, true},
		},
		"it measures the path": {{reading{0, path, 256, 256}, 0, true}, {reading{brakeLost, path, 256, 256}, 0, true}, {reading{2 * brakeLost, path, 256, 256}, 0, true}},
		"too slow to say":      {{reading{brakeLost, 1, startupGain, startupGain}, 0, true}, {reading{2 * brakeLost, 1, startupGain, startupGain}, 0, true}},
		"too fast":             {{reading{brakeLost, fastest, startupGain, startupGain}, 0, true}, {reading{2 * brakeLost, fastest, startupGain, startupGain}, 0, true}},
		"it has begun":         {{reading{0, path, 256, cruiseGain}, unbound, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var b brake
			now := time.Unix(1e9, 0)
			for i, l := range looks {
				rate, goesOn := b.judge(l.reading, now)
				require.Equal(t, l.rate, rate, "look %d", i)
				require.Equal(t, l.goesOn, goesOn, "look %d", i)
				now = now.Add(brakeCheck)
			}
		})
	}
}

// The kernel is asked only about bulk, and where it has BBR.
func TestBrakeLooks(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	for _, congestion := range []string{"reno", "bbr"} {
		c, err := net.Dial("tcp", listener.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		b := newBrake(c)
		require.NotNil(t, b.raw)
		var failed error
		err = b.raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		})
		require.NoError(t, err)
		if failed != nil {
			t.Skipf("this kernel has no %s: %v", congestion, failed)
		}
		b.note(brakeBulk - 1)
		require.Zero(t, b.looked)
		b.note(brakeBulk)
		require.NotZero(t, b.looked)
		require.Equal(t, congestion == "bbr", b.raw != nil)
	}
	unknown, other := net.Pipe()
	defer unknown.Close()
	defer other.Close()
	newBrake(unknown).note(brakeBulk)
}
