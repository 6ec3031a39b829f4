package dnsproxy

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const before = "# from DHCP\nnameserver 192.168.1.1\nnameserver fd00::53\n" +
	"search office.example lab.example\noptions ndots:2 timeout:1\n"

var listen = netip.MustParseAddr("100.64.0.2")

// laptopWith is a laptop whose resolv.conf has content.
func laptopWith(t *testing.T, content string) ResolvConf {
	dir := t.TempDir()
	r := ResolvConf{Path: filepath.Join(dir, "resolv.conf"), State: filepath.Join(dir, "state")}
	require.NoError(t, os.Mkdir(r.State, 0o700))
	require.NoError(t, os.WriteFile(r.Path, []byte(content), 0o644))
	return r
}

func content(t *testing.T, path string) string {
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(raw)
}

func nothingKept(t *testing.T, r ResolvConf) {
	left, err := os.ReadDir(r.State)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// The proxy is the only server; the search path and the options of before stay, for the names that
// are not the cluster's.
func TestSetResolver(t *testing.T) {
	for name, c := range map[string]struct {
		before string
		search []string
		want   string
	}{
		"as an office writes it": {
			before: before,
			search: []string{"shop.svc.cluster.local", "svc.cluster.local"},
			want: header +
				"nameserver 100.64.0.2\noptions ndots:2 timeout:1\nsearch shop.svc.cluster.local svc.cluster.local office.example lab.example\n",
		},
		"only a server": {
			before: "nameserver 192.168.1.1",
			search: []string{"svc.cluster.local"},
			want:   header + "nameserver 100.64.0.2\nsearch svc.cluster.local\n",
		},
		"no search path":         {"nameserver 192.168.1.1\n", nil, header + "nameserver 100.64.0.2\n"},
		"options without an end": {"options rotate", nil, header + "nameserver 100.64.0.2\noptions rotate\n"},
		"empty":                  {"", nil, header + "nameserver 100.64.0.2\n"},
		"only comments": {
			before: "# nameserver 192.168.1.1\n; search lab.example\n",
			want:   header + "nameserver 100.64.0.2\n",
		},
		// resolv.conf(5): domain is a search path of one, and of several lines the last one counts.
		"a domain": {
			before: "domain office.example\n",
			search: []string{"svc.cluster.local"},
			want:   header + "nameserver 100.64.0.2\nsearch svc.cluster.local office.example\n",
		},
		"several search paths": {
			before: "domain a.example\nsearch b.example\nsearch c.example d.example\n",
			want:   header + "nameserver 100.64.0.2\nsearch c.example d.example\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := laptopWith(t, c.before)
			require.NoError(t, r.Set(listen, c.search))
			assert.Equal(t, c.want, content(t, r.Path))
			require.NoError(t, r.Restore())
			assert.Equal(t, c.before, content(t, r.Path), "to the byte")
			nothingKept(t, r)
		})
	}
}

// However a session ended, the laptop gets its resolver back, and never detour's own in its place.
func TestResolverAfterACrash(t *testing.T) {
	t.Run("the next start puts it back", func(t *testing.T) {
		r := laptopWith(t, before)
		require.NoError(t, r.Set(listen, nil))
		next := ResolvConf{Path: r.Path, State: r.State}
		require.NoError(t, next.Restore())
		assert.Equal(t, before, content(t, r.Path))
		nothingKept(t, r)
	})
	t.Run("the next session finds what the first wrote", func(t *testing.T) {
		r := laptopWith(t, before)
		require.NoError(t, r.Set(listen, []string{"shop.svc.cluster.local"}))
		require.NoError(t, r.Set(netip.MustParseAddr("100.64.0.3"), []string{"lab.svc.cluster.local"}))
		assert.Equal(t,
			header+"nameserver 100.64.0.3\noptions ndots:2 timeout:1\n"+
				"search lab.svc.cluster.local office.example lab.example\n",
			content(t, r.Path))
		require.NoError(t, r.Restore())
		assert.Equal(t, before, content(t, r.Path))
	})
	for name, lost := range map[string]func(ResolvConf) string{
		"before it noted what it would write": ResolvConf.written,
		"before it wrote":                     nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := laptopWith(t, before)
			require.NoError(t, r.Set(listen, nil))
			require.NoError(t, os.WriteFile(r.Path, []byte(before), 0o644))
			if lost != nil {
				require.NoError(t, os.Remove(lost(r)))
			}
			require.NoError(t, r.Restore())
			assert.Equal(t, before, content(t, r.Path))
			nothingKept(t, r)
		})
	}
}

// Whoever wrote the file after detour (a DHCP client on another network) knows better.
func TestRestoreLeavesWhatOthersWrote(t *testing.T) {
	const dhcp = "nameserver 10.0.0.1\n"
	r := laptopWith(t, before)
	require.NoError(t, r.Set(listen, nil))
	require.NoError(t, os.WriteFile(r.Path, []byte(dhcp), 0o644))
	require.NoError(t, r.Restore())
	assert.Equal(t, dhcp, content(t, r.Path))
	nothingKept(t, r)

	t.Run("nor what they took away", func(t *testing.T) {
		r := laptopWith(t, before)
		require.NoError(t, r.Set(listen, nil))
		require.NoError(t, os.Remove(r.Path))
		require.NoError(t, r.Restore())
		assert.NoFileExists(t, r.Path)
		nothingKept(t, r)
	})
	t.Run("and without a session nothing happens", func(t *testing.T) {
		r := laptopWith(t, before)
		require.NoError(t, r.Restore())
		assert.Equal(t, before, content(t, r.Path))
	})
}

// The file is often a symbolic link, and a link it stays.
func TestResolverThroughALink(t *testing.T) {
	r := laptopWith(t, before)
	target := r.Path + ".stub"
	require.NoError(t, os.Rename(r.Path, target))
	require.NoError(t, os.Symlink(target, r.Path))
	require.NoError(t, r.Set(listen, nil))
	assert.Contains(t, content(t, target), "nameserver 100.64.0.2")
	require.NoError(t, r.Restore())
	assert.Equal(t, before, content(t, target))
	info, err := os.Lstat(r.Path)
	require.NoError(t, err)
	assert.NotZero(t, info.Mode()&os.ModeSymlink)
}

// Without a copy of the file, it is not touched.
func TestSetWithoutState(t *testing.T) {
	r := laptopWith(t, before)
	require.NoError(t, os.Remove(r.State))
	require.ErrorContains(t, r.Set(listen, nil), "keep a copy of "+r.Path)
	assert.Equal(t, before, content(t, r.Path))
}

// A laptop without the file gets an empty one back, which means the same: resolv.conf(5).
func TestNoResolverBefore(t *testing.T) {
	r := laptopWith(t, "")
	require.NoError(t, os.Remove(r.Path))
	servers, search, err := r.Upstream()
	require.NoError(t, err)
	assert.Empty(t, servers)
	assert.Empty(t, search)
	require.NoError(t, r.Set(listen, []string{"svc.cluster.local"}))
	assert.Equal(t, header+"nameserver 100.64.0.2\nsearch svc.cluster.local\n", content(t, r.Path))
	require.NoError(t, r.Restore())
	assert.Empty(t, content(t, r.Path))
	nothingKept(t, r)
}

func TestUpstream(t *testing.T) {
	for name, c := range map[string]struct {
		content         string
		servers, search []string
	}{
		"as an office writes it": {
			content: before,
			servers: []string{"192.168.1.1:53", "[fd00::53]:53"},
			search:  []string{"office.example", "lab.example"},
		},
		"a scope":             {"nameserver fe80::1%eth0\n", []string{"[fe80::1%eth0]:53"}, nil},
		"tabs, no line end":   {"nameserver\t192.168.1.1", []string{"192.168.1.1:53"}, nil},
		"comments":            {"#nameserver 192.168.1.1\n; nameserver 192.168.1.2\n", nil, nil},
		"a word alone":        {"nameserver\nsearch\n", nil, nil},
		"a domain":            {"domain office.example\n", nil, []string{"office.example"}},
		"the last one counts": {"search a.example\ndomain b.example\n", nil, []string{"b.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			servers, search, err := laptopWith(t, c.content).Upstream()
			require.NoError(t, err)
			assert.Equal(t, c.servers, servers)
			assert.Equal(t, c.search, search)
		})
	}
}

// After a crash the file leads nowhere, which somebody who may not write it can be told.
func TestLeftBehind(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		left    bool
	}{
		"of a daemon that is gone": {header + "nameserver 203.0.113.2\nsearch shop.svc.cluster.local\n", true},
		"of one that runs":         {header + "nameserver 127.0.0.1\n", false},
		"somebody else's":          {before, false},
		"nothing":                  {"", false},
		"without a resolver":       {header, false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.left, laptopWith(t, c.content).LeftBehind()) })
	}
	assert.False(t, ResolvConf{Path: filepath.Join(t.TempDir(), "none")}.LeftBehind())
}
