//go:build !unix

package tuning

import "time"

// cpuTime is not known here, so the process keeps all processors.
func cpuTime() (time.Duration, bool) { return 0, false }
