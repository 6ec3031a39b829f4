package wgkey

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Each side makes the same proof from its own private key, and nobody else does.
func TestProofNeedsEitherPrivateKey(t *testing.T) {
	var private [3]Key
	for i := range private {
		var err error
		private[i], err = NewPrivate()
		require.NoError(t, err)
	}
	proof := func(k, of Key, purpose string) string {
		p, err := k.Proof(of, purpose)
		require.NoError(t, err)
		return string(p)
	}
	one := proof(private[0], private[1].Public(), "tail")
	assert.Equal(t, one, proof(private[1], private[0].Public(), "tail"))
	assert.NotEqual(t, one, proof(private[1], private[0].Public(), "other"))
	assert.NotEqual(t, one, proof(private[2], private[0].Public(), "tail"))
	_, err := private[0].Proof(Key{}, "tail")
	assert.Error(t, err, "an invalid point is refused")
}
