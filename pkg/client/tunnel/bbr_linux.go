package tunnel

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// checkInterval is the least time between two looks at a connection in BBR's STARTUP, and
	// maxHold the longest time for which a connection is held back.
	checkInterval, maxHold = 500 * time.Millisecond, 3 * time.Second
	// overloadBytes is how many bytes the kernel must have retransmitted between two looks for the
	// connection to count as overloading the path.
	overloadBytes = 32 << 10
	// bulkWrite is how long a write must be to count as bulk.
	bulkWrite = 16 << 10
	// startupGain is how much faster than the path BBR sends in STARTUP. cruiseGain is how many
	// round trips of bytes it has in flight after STARTUP. Both are in 256ths, as in Linux's
	// tcp_bbr.c.
	startupGain, cruiseGain = 739, 512
	// minRate and maxRate bound the rates, in bytes a second, that the limiter acts on:
	// SO_MAX_PACING_RATE has 32 bits.
	minRate, maxRate = 16 << 10, 1 << 31
)

// startupLimiter makes BBR leave STARTUP.
//
// In STARTUP, BBR sends at 2.9 times the path's rate. It leaves when three round trips with a full
// window bring no more bytes than those before. TCP inside the tunnel keeps too few bytes in flight
// for that, so on a slow line BBR stays in STARTUP and overfills the line's queue, where small
// packets are lost too. The limiter paces the socket at 7/8 of the measured rate for a moment. Then
// bytes wait, BBR sees that the path has no more to give, and goes on at the path's rate.
//
// Gain: in half of the uploads over a slow line BBR never left STARTUP without it. Cost: two
// getsockopt calls every 500 ms of a bulk upload, until STARTUP is over. Measured with
// `make bench` (row out.slow); see docs/design/performance-log.md.
//
// Its methods must not be called by two goroutines at a time.
type startupLimiter struct {
	raw           syscall.RawConn // nil when no look is needed any more
	checked       time.Time
	retransmitted uint64    // bytes, at the last look
	overloading   bool      // at the last look
	heldSince     time.Time // zero while the connection is not held back
}

func newStartupLimiter(c net.Conn) *startupLimiter {
	l := &startupLimiter{}
	if s, ok := c.(syscall.Conn); ok {
		l.raw, _ = s.SyscallConn()
	}
	return l
}

// note must be called before each write, with its length.
func (l *startupLimiter) note(bytes int) {
	if l.raw == nil || bytes < bulkWrite {
		return
	}
	if now := time.Now(); now.Sub(l.checked) >= checkInterval {
		l.check(now)
	}
}

func (l *startupLimiter) check(now time.Time) {
	l.checked = now
	again := false
	err := l.raw.Control(func(fd uintptr) {
		r, ok := readBBR(int(fd))
		if !ok {
			return
		}
		var rate int
		if rate, again = l.judge(r, now); rate != 0 {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate) // a hint
		}
	})
	if err != nil || !again {
		l.raw = nil
	}
}

// bbrState is what the kernel reports of a connection.
type bbrState struct {
	retransmitted        uint64 // bytes
	rate                 uint64 // of the path, in bytes a second
	pacingGain, cwndGain uint32 // in 256ths
}

// readBBR returns the state of a socket, and false when the socket does not use BBR.
func readBBR(fd int) (r bbrState, ok bool) {
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
	return bbrState{
		retransmitted: info.Bytes_retrans, rate: uint64(bbr.Bw_hi)<<32 | uint64(bbr.Bw_lo),
		pacingGain: bbr.Pacing_gain, cwndGain: bbr.Cwnd_gain,
	}, true
}

// unlimited is the pacing rate that removes the limit.
const unlimited = -1

// judge returns the pacing rate to set, or 0 for no change, and whether to look at the connection
// again.
func (l *startupLimiter) judge(r bbrState, now time.Time) (rate int, again bool) {
	overloads := r.retransmitted-l.retransmitted >= overloadBytes
	l.retransmitted = r.retransmitted
	held := !l.heldSince.IsZero()
	switch {
	case r.cwndGain == cruiseGain:
		return unlimited, false
	case held && now.Sub(l.heldSince) > maxHold:
		l.heldSince, l.overloading = time.Time{}, false
		return unlimited, true
	case held:
		return 0, true
	case overloads && l.overloading && r.pacingGain == startupGain && r.rate >= minRate && r.rate < maxRate:
		l.heldSince = now
		return int(r.rate * 7 / 8), true
	}
	l.overloading = overloads
	return 0, true
}
