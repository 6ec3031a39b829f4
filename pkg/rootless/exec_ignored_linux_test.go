package rootless

import (
	"os/signal"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Under nohup a command outlives its terminal, and so does a command that detour runs.
func TestIgnoredSignalsStayIgnored(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	code, out := output(t, 0, "kill -HUP $PPID; kill -HUP $$; echo alive > $OUT")
	require.Zero(t, code)
	require.Equal(t, "alive", out)
}
