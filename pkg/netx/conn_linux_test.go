package netx

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAbortSendsAReset(t *testing.T) {
	a, b := pair(t)
	Abort(&layer{Conn: a})
	_, err := b.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}
