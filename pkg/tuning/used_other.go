//go:build !unix

package tuning

import "time"

// usedTime is not known here, so the program keeps all processors.
func usedTime() (time.Duration, bool) { return 0, false }
