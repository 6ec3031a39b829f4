package transport

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// A hub of an older version does not know express streams, and gets none.
func TestOlderHubsGetNoExpressStream(t *testing.T) {
	private, err := wgkey.NewPrivate()
	require.NoError(t, err)
	p, err := NewProber(private, private.Public(), private.Public())
	require.NoError(t, err)
	l := newSelector(p, nil, slog.New(slog.DiscardHandler))
	near, _ := sockets(t)
	s := newStreamWire("stream-1", near)
	defer l.add(&path{Wire: s, transport: "stream"})()
	l.since = l.since.Add(-time.Hour)
	for _, takes := range []byte{FeatureLarge, FeatureLarge | FeatureExpress, FeatureLarge} {
		l.pings[7] = pendingPing{path: l.active.Load(), sentAt: time.Now()}
		l.handlePong(s, p.Seal(PongType, Probe{Number: 7, Features: takes}, 0))
		require.Equal(t, takes&FeatureExpress != 0, l.WantsExpress(s))
	}
}
