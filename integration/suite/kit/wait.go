package kit

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// reserve is the part of the suite's time that no wait may use, so that the tests still clean up.
const reserve = time.Minute

// Patience returns how long a test may wait for an event that must happen, however busy the machine
// is. Only the suite's own limit bounds it: a wait gets a fifteenth of the time that is left, so
// that one event that never happens does not take all of it.
func Patience(t *testing.T) time.Duration {
	deadline, limited := t.Deadline()
	if !limited {
		return time.Hour
	}
	return max((time.Until(deadline)-reserve)/15, reserve)
}

// Eventually waits until a condition holds. The message says what the test waits for. The condition
// runs on the test's own goroutine, so that it may use require.
func Eventually(t *testing.T, condition func() bool, message ...any) {
	t.Helper()
	if !Holds(t, condition) {
		text := "the condition does not hold"
		if len(message) > 0 {
			format, _ := message[0].(string)
			text = fmt.Sprintf(format, message[1:]...)
		}
		require.Fail(t, "waited too long", text)
	}
}

// Holds waits until a condition holds and reports whether it does.
func Holds(t *testing.T, condition func() bool) bool {
	t.Helper()
	for deadline := time.Now().Add(Patience(t)); ; {
		start := time.Now()
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		// An expensive condition is checked less often: the processors belong to what the test
		// waits for.
		time.Sleep(max(time.Since(start), 10*time.Millisecond))
	}
}
