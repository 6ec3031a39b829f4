package transport

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

func probers(t *testing.T) (laptop, hub *Prober) {
	t.Helper()
	a, err := wgkey.NewPrivate()
	require.NoError(t, err)
	b, err := wgkey.NewPrivate()
	require.NoError(t, err)
	laptop, err = NewProber(a, b.Public(), a.Public())
	require.NoError(t, err)
	hub, err = NewProber(b, a.Public(), a.Public())
	require.NoError(t, err)
	return laptop, hub
}

func TestProbes(t *testing.T) {
	laptop, hub := probers(t)
	stranger, _ := probers(t)
	for _, size := range []int{0, MinProbe, MaxDatagram} {
		want := Probe{Number: 42, Instance: 7, Features: FeatureLarge}
		ping := laptop.Seal(PingType, want, size)
		if size != 0 {
			require.Len(t, ping, size)
		}
		require.True(t, isProbe(ping))
		got, ok := hub.Open(PingType, ping)
		require.True(t, ok)
		if size == MinProbe {
			want.Features = 0 // there is no room for it
		}
		require.Equal(t, want, got)

		_, ok = laptop.Open(PongType, ping)
		require.False(t, ok, "a ping is not a pong")
		asPong := bytes.Clone(ping)
		asPong[0] = PongType
		_, ok = laptop.Open(PongType, asPong)
		require.False(t, ok, "nor is one with the type of a pong")
		for i := range ping {
			bad := bytes.Clone(ping)
			bad[i] ^= 1
			_, ok = hub.Open(PingType, bad)
			require.False(t, ok, "byte %d changed", i)
		}
		_, ok = hub.Open(PingType, stranger.Seal(PingType, Probe{Number: 1}, size))
		require.False(t, ok)
	}
	_, err := NewProber(wgkey.Key{1}, wgkey.Key{}, wgkey.Key{})
	require.Error(t, err, "an invalid point is refused")
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte{PingType}, byte(PingType))
	f.Add(make([]byte, MinProbe), byte(PongType))
	f.Fuzz(func(t *testing.T, m []byte, kind byte) {
		key := wgkey.Key{1, 2, 3}
		p, err := NewProber(key, key.Public(), key.Public())
		require.NoError(t, err)
		_, ok := p.Open(kind, m)
		require.False(t, ok)
		if len(m) >= probeHeader {
			copy(m[4:], p.id[:])
			_, ok = p.Open(kind, m)
			require.False(t, ok)
		}
	})
}
