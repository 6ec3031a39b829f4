//go:build unix

package tuning

import (
	"time"

	"golang.org/x/sys/unix"
)

// usedTime is the processor time that the program has used.
func usedTime() (time.Duration, bool) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
