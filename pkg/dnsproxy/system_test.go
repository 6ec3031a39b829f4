package dnsproxy

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A laptop that comes into another network, or a VPN, gets other resolvers: they are asked for what
// is not the cluster's, and are there when detour goes.
func TestResolversThatComeLater(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	read := func() string { raw, err := os.ReadFile(path); require.NoError(t, err); return string(raw) }
	upstream := func(s System) []string { all, err := s.Upstream(); require.NoError(t, err); return all }
	write("nameserver 192.168.1.1\n")
	s := Plain(ResolvConf{Path: path, State: dir})
	require.NoError(t, s.Keep(), "nothing is set")
	require.Equal(t, "nameserver 192.168.1.1\n", read())
	require.Equal(t, []string{"192.168.1.1:53"}, upstream(s))

	require.NoError(t, s.Set("", netip.MustParseAddr("198.18.0.2"), []string{"shop.svc.cluster.local"}))
	ours := read()
	require.NoError(t, s.Keep())
	require.Equal(t, ours, read())
	require.Equal(t, []string{"192.168.1.1:53"}, upstream(s))

	write("nameserver 10.0.0.1\nsearch office\n")
	require.NoError(t, s.Keep())
	require.Contains(t, read(), "nameserver 198.18.0.2\nsearch shop.svc.cluster.local office\n")
	require.Equal(t, []string{"10.0.0.1:53"}, upstream(s))
	require.NoError(t, s.Restore())
	require.Equal(t, "nameserver 10.0.0.1\nsearch office\n", read())
	require.Equal(t, []string{"10.0.0.1:53"}, upstream(s))
}

// Programs that keep the file as they find it and put it back when they end, as scripts of VPNs do,
// may have found detour's.
func TestResolversThatOthersKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	read := func() string { raw, err := os.ReadFile(path); require.NoError(t, err); return string(raw) }
	upstream := func(s System) []string { all, err := s.Upstream(); require.NoError(t, err); return all }
	set := func() System {
		write("nameserver 192.168.1.1\n")
		s := Plain(ResolvConf{Path: path, State: dir})
		require.NoError(t, s.Set("", netip.MustParseAddr("198.18.0.2"), []string{"shop.svc.cluster.local"}))
		return s
	}
	const vpn = "nameserver 10.0.0.1\nsearch office\n"

	s := set()
	ours := read()
	write(vpn)
	require.NoError(t, s.Keep())
	require.Equal(t, []string{"10.0.0.1:53"}, upstream(s))
	write(ours) // the VPN has ended
	require.NoError(t, s.Keep())
	require.Equal(t, []string{"192.168.1.1:53"}, upstream(s), "the proxy is not asked by itself")
	require.Equal(t, ours, read())
	require.NoError(t, s.Restore())
	require.Equal(t, "nameserver 192.168.1.1\n", read())

	s = set()
	write(vpn)
	require.NoError(t, s.Keep())
	write(ours) // and detour goes before it has seen that
	require.NoError(t, s.Restore())
	require.Equal(t, "nameserver 192.168.1.1\n", read())

	s = set()
	write("nameserver 10.0.0.1\n" + ours) // put before what was there
	require.Equal(t, []string{"10.0.0.1:53"}, upstream(s))
	require.NoError(t, s.Keep())
	require.Equal(t, []string{"10.0.0.1:53"}, upstream(s))
	require.NoError(t, s.Restore())
	require.NotContains(t, read(), "198.18.0.2")
}

// What follows the resolvers may be under way when the session ends.
func TestNothingIsKeptAfterTheEnd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	require.NoError(t, os.WriteFile(path, []byte("nameserver 192.168.1.1\n"), 0o600))
	s := Plain(ResolvConf{Path: path, State: dir})
	require.NoError(t, s.Set("", netip.MustParseAddr("198.18.0.2"), nil))
	require.NoError(t, s.Restore())
	require.NoError(t, s.Keep())
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "nameserver 192.168.1.1\n", string(raw))
}
