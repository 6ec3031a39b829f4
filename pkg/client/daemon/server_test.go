package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A second daemon leaves the first one's resolver configuration alone: it is in use, and the copy is all there is of what was before.
func TestSecondDaemon(t *testing.T) {
	dir := t.TempDir()
	p := Paths{Run: dir, State: dir}
	first, err := net.Listen("unix", p.Socket())
	require.NoError(t, err)
	defer first.Close()
	kept := filepath.Join(p.State, "resolv.conf.before")
	require.NoError(t, os.WriteFile(kept, []byte("nameserver 192.168.1.1\n"), 0o600))

	require.EqualError(t, Run(context.Background(), p, slog.New(slog.DiscardHandler)), "a daemon runs already")
	assert.FileExists(t, kept)
	again, err := net.Dial("unix", p.Socket())
	require.NoError(t, err, "the first one still answers")
	_ = again.Close()
}
