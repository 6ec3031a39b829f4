package environment

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Root could replace even /dev/null by a file.
func TestOnlyRegularFilesAreReplaced(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	link := filepath.Join(t.TempDir(), "stdout")
	require.NoError(t, os.Symlink(os.DevNull, link))
	for _, path := range []string{pipe, link, t.TempDir()} {
		before, err := os.Lstat(path)
		require.NoError(t, err)
		require.ErrorContains(t, WriteFile(path, []byte("A=1\n")), "it is not a regular file")
		after, err := os.Lstat(path)
		require.NoError(t, err)
		assert.True(t, os.SameFile(before, after), path)
	}
}
