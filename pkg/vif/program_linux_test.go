package vif

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOnlyWhatNobodyWroteToIsLetGo(t *testing.T) {
	smaps := `00400000-0222a000 r-xp 00000000 00:1c 123 /bin/detour
Rss:               19196 kB
Anonymous:             0 kB
0222a000-04486000 r--p 01e2a000 00:1c 123 /bin/detour
Anonymous:             4 kB
04486000-0456b000 rw-p 04086000 00:1c 123 /bin/detour
Anonymous:             0 kB
7ffd8f9c6000-7ffd8f9c8000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
`
	require.Equal(t, []mapping{{0x400000, 0x222a000}}, fileMappings(strings.NewReader(smaps)))
}

func TestProgramIsLetGo(t *testing.T) {
	before := residentFile(t)
	letProgramGo()
	require.Less(t, residentFile(t), before)
}

// residentFile is how much of files is mapped and resident, in KiB.
func residentFile(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(status), "RssFile:")
	require.True(t, found)
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return kib
}
