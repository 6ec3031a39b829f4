package dnsproxy

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// resolveService is systemd-resolved as far as detour has to do with it, on a real D-Bus.
type resolveService struct{ calls chan string }

func (s resolveService) note(call ...string) *dbus.Error {
	s.calls <- strings.Join(call, " ")
	return nil
}

func (s resolveService) SetLinkDNS(_ int32, all []address) *dbus.Error {
	text := []string{"dns"}
	for _, a := range all {
		ip, _ := netip.AddrFromSlice(a.Bytes)
		text = append(text, ip.String())
	}
	return s.note(text...)
}

func (s resolveService) SetLinkDomains(_ int32, all []domain) *dbus.Error {
	text := []string{"domains"}
	for _, d := range all {
		if d.RouteOnly {
			d.Name = "~" + d.Name
		}
		text = append(text, d.Name)
	}
	return s.note(text...)
}

func (s resolveService) SetLinkDNSSEC(_ int32, mode string) *dbus.Error {
	return s.note("dnssec", mode)
}
func (s resolveService) RevertLink(int32) *dbus.Error { return s.note("revert") }
func (s resolveService) FlushCaches() *dbus.Error     { return s.note("flush") }

// bus starts a D-Bus of the test's own and makes it the system's, as far as this process knows.
func bus(t *testing.T) *dbus.Conn {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("there is no dbus-daemon on this machine")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	require.NoError(t, os.WriteFile(config, []byte(`<busconfig>
<type>system</type>
<listen>unix:path=`+dir+`/bus</listen>
<auth>EXTERNAL</auth>
<policy context="default">
<allow user="*"/>
<allow own="*"/>
<allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/>
</policy>
</busconfig>`), 0o600))
	cmd := exec.Command("dbus-daemon", "--nofork", "--print-address", "--config-file", config)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line := make([]byte, 1000)
	n, err := out.Read(line)
	require.NoError(t, err)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(string(line[:n])))
	c, err := dbus.ConnectSystemBus()
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// stubbed is a resolv.conf that leads to systemd-resolved.
func stubbed(t *testing.T) ResolvConf {
	t.Helper()
	dir := t.TempDir()
	file := ResolvConf{Path: filepath.Join(dir, "resolv.conf"), State: dir}
	require.NoError(t,
		os.WriteFile(file.Path, []byte("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"), 0o600))
	return file
}

func TestResolved(t *testing.T) {
	c := bus(t)
	service := resolveService{make(chan string, 20)}
	require.NoError(t, c.Export(service, resolvedPath, "org.freedesktop.resolve1.Manager"))
	_, err := c.RequestName(resolvedName, 0)
	require.NoError(t, err)

	file := stubbed(t)
	system := FindSystem(t.Context(), file, slog.New(slog.DiscardHandler))
	require.IsType(t, &resolved{}, system)
	system.(*resolved).uplinks = filepath.Join(t.TempDir(), "resolv.conf")
	require.NoError(t,
		os.WriteFile(system.(*resolved).uplinks, []byte("nameserver 192.168.1.1\nnameserver 198.18.0.2\n"), 0o600))
	proxy := netip.MustParseAddr("198.18.0.2")
	require.NoError(t, system.Set("lo", proxy, []string{"shop.svc.cluster.local", "cluster.local"}))
	require.NoError(t, system.Keep())
	all, err := system.Upstream()
	require.NoError(t, err)
	assert.Equal(t, []string{"192.168.1.1:53"}, all, "the proxy does not ask itself")
	require.NoError(t, system.Restore())

	var calls []string
	for len(service.calls) > 0 {
		calls = append(calls, <-service.calls)
	}
	// This one is so old that it does not know the rest.
	assert.Equal(t,
		[]string{
			"dns 198.18.0.2",
			"domains ~. shop.svc.cluster.local cluster.local",
			"dnssec no",
			"flush",
			"revert",
			"flush",
		}, calls)
	raw, err := os.ReadFile(file.Path)
	require.NoError(t, err)
	assert.Contains(t, string(raw), "127.0.0.53", "the file is left alone")
}

func TestResolvedThatIsNotThere(t *testing.T) {
	bus(t)
	system := FindSystem(context.Background(), stubbed(t), slog.New(slog.DiscardHandler))
	require.IsType(t, &plain{}, system)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
	require.IsType(t, &plain{}, FindSystem(context.Background(), stubbed(t), slog.New(slog.DiscardHandler)))
}

func TestWhoLeadsToResolved(t *testing.T) {
	for text, want := range map[string]bool{
		"nameserver 127.0.0.53\n":  true,
		"nameserver 127.0.0.54\n":  true,
		"":                         false,
		"nameserver 192.168.1.1\n": false,
		"nameserver 127.0.0.53\nnameserver 192.168.1.1\n": false,
	} {
		file := stubbed(t)
		require.NoError(t, os.WriteFile(file.Path, []byte(text), 0o600))
		assert.Equal(t, want, file.leadsToResolved(), text)
	}
}
