package retry

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDoRetriesUntilSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		require.NoError(t, Do(t.Context(), slog.New(slog.DiscardHandler), func(context.Context) error {
			if tries++; tries < 3 {
				return errors.New("no answer")
			}
			return nil
		}))
		assert.Equal(t, 3, tries)
	})
}

func TestDoEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noAnswer := errors.New("no answer")
		ctx, cancel := context.WithCancel(t.Context())
		tries := 0
		require.ErrorIs(t, Do(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
			if tries++; tries == 2 {
				cancel()
			}
			return noAnswer
		}), noAnswer)
		assert.Equal(t, 2, tries)
	})
}

func TestDoGivesUpAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noAnswer, start := errors.New("no answer"), time.Now()
		require.ErrorIs(t, Do(t.Context(), slog.New(slog.DiscardHandler), func(context.Context) error {
			return noAnswer
		}), noAnswer)
		assert.Equal(t, limit, time.Since(start))
	})
}
