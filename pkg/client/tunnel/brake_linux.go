package tunnel

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// brakeCheck is how often a connection at BBR's beginning is looked at, and brakeFor how long it is held back at most.
	brakeCheck, brakeFor = 500 * time.Millisecond, 3 * time.Second
	// brakeLost, in bytes sent again between two looks, shows that it sends too much.
	brakeLost = 32 << 10
	// brakeBulk is how long a write has to be to count as bulk.
	brakeBulk = 16 << 10
	// startupGain is how much faster than the path BBR sends at its beginning, and cruiseGain how many round trips it has under way when that is
	// over, both in 256ths.
	startupGain, cruiseGain = 739, 512
	// A rate is bounded with 32 bits, and to something that is one.
	slowest, fastest = 16 << 10, 1 << 31
)

// brake ends BBR's beginning. BBR sends at 2.9 times the path's rate until three round trips full of bytes have brought no more than the ones
// before. TCP inside the tunnel has fewer bytes under way than that takes, so on a slow line BBR never gets there, and overfills the line's queue
// for ever, where small packets are lost too. Held a little below the path's rate for a moment there are bytes to spare, BBR sees that there
// is no more to be had, and goes on at the path's rate. Its methods must not be called by two goroutines at a time.
type brake struct {
	raw    syscall.RawConn // nil when there is nothing to do any more
	looked time.Time
	again  uint64    // bytes that had been sent again at the last look
	losing bool      // they had become more
	since  time.Time // when the connection was held back; zero while it is not
}

func newBrake(c net.Conn) *brake {
	b := &brake{}
	if s, ok := c.(syscall.Conn); ok {
		b.raw, _ = s.SyscallConn()
	}
	return b
}

// note is told of each write.
func (b *brake) note(bytes int) {
	if b.raw == nil || bytes < brakeBulk {
		return
	}
	if now := time.Now(); now.Sub(b.looked) >= brakeCheck {
		b.look(now)
	}
}

func (b *brake) look(now time.Time) {
	b.looked = now
	goesOn := false
	err := b.raw.Control(func(fd uintptr) {
		r, ok := read(int(fd))
		if !ok {
			return
		}
		var rate int
		if rate, goesOn = b.judge(r, now); rate != 0 {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate) // nothing depends on it
		}
	})
	if err != nil || !goesOn {
		b.raw = nil
	}
}

// reading is what the kernel says of a connection.
type reading struct {
	again                uint64 // bytes that were sent again
	rate                 uint64 // of the path, in bytes a second
	pacingGain, cwndGain uint32
}

// read is for connections with BBR only.
func read(fd int) (r reading, ok bool) {
	if name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || name != "bbr" {
		return r, false
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return r, false
	}
	bbr, err := unix.GetsockoptTCPCCBBRInfo(fd, unix.IPPROTO_TCP, unix.TCP_CC_INFO)
	if err != nil {
		return r, false
	}
	return reading{info.Bytes_retrans, uint64(bbr.Bw_hi)<<32 | uint64(bbr.Bw_lo), bbr.Pacing_gain, bbr.Cwnd_gain}, true
}

// unbound takes the bound of a rate away.
const unbound = -1

// judge gives the rate that the connection shall be held to from now on, 0 for no change, and whether the next look is worth it.
func (b *brake) judge(r reading, now time.Time) (rate int, goesOn bool) {
	loses := r.again-b.again >= brakeLost
	b.again = r.again
	switch {
	case r.cwndGain == cruiseGain:
		return unbound, false
	case !b.since.IsZero() && now.Sub(b.since) > brakeFor:
		b.since, b.losing = time.Time{}, false
		return unbound, true
	case !b.since.IsZero():
		return 0, true
	case loses && b.losing && r.pacingGain == startupGain && r.rate >= slowest && r.rate < fastest:
		b.since = now
		return int(r.rate * 7 / 8), true
	}
	b.losing = loses
	return 0, true
}
