package sniff

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
)

// frames writes three frames with a real framer and returns them and where they end.
func frames(t testing.TB) (all []byte, ends []int) {
	var b bytes.Buffer
	f := http2.NewFramer(&b, nil)
	require.NoError(t, f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20}))
	ends = append(ends, b.Len())
	require.NoError(t, f.WriteSettingsAck())
	ends = append(ends, b.Len())
	require.NoError(t, f.WriteData(1, false, bytes.Repeat([]byte("x"), 70000)))
	return b.Bytes(), append(ends, b.Len())
}

// However the bytes are cut into reads, the ends of the frames are found.
func TestFramesEndWhereTheyEnd(t *testing.T) {
	all, ends := frames(t)
	for _, size := range []int{1, 2, 8, 9, 10, 1000, len(all)} {
		var f Frames
		require.False(t, f.Between(), "nothing may come before the first frame")
		var found []int
		for at := 0; at < len(all); at += size {
			b := all[at:min(at+size, len(all))]
			if end := f.Feed(b); end >= 0 {
				found = append(found, at+end)
				require.Equal(t, end == len(b), f.Between())
			} else {
				require.False(t, f.Between() && at+len(b) != ends[0] && at+len(b) != ends[1])
			}
		}
		require.Subset(t, ends, found)
		require.Equal(t, len(all), found[len(found)-1])
		require.True(t, f.Between())
	}
}

func TestGoawayIsOne(t *testing.T) {
	frame, err := http2.NewFramer(nil, bytes.NewReader(Goaway)).ReadFrame()
	require.NoError(t, err)
	goaway, ok := frame.(*http2.GoAwayFrame)
	require.True(t, ok)
	require.EqualValues(t, 1<<31-1, goaway.LastStreamID)
	require.Equal(t, http2.ErrCodeNo, goaway.ErrCode)
}

func FuzzFrames(f *testing.F) {
	all, _ := frames(f)
	f.Add(all[:200], 7)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		if cut < 0 || cut > len(b) {
			return
		}
		var whole, parts Frames
		end := whole.Feed(b)
		if end > len(b) {
			t.Fatalf("a frame ends at %d of %d", end, len(b))
		}
		first := parts.Feed(b[:cut])
		second := parts.Feed(b[cut:])
		if second >= 0 {
			first = cut + second
		}
		if first != end || whole != parts {
			t.Fatalf("cut at %d: %d is not %d", cut, first, end)
		}
	})
}
