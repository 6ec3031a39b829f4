package suite

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// askDatagram asks a UDP port and returns who answers, or nothing when nobody does in time.
func askDatagram(c net.Conn) string {
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("question")); err != nil {
		return ""
	}
	b := make([]byte, 1000)
	n, err := c.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func dialUDP(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Datagrams go to the laptop and back with an intercept, and to the app whatever becomes of the laptop.
func TestUDP(t *testing.T) {
	t.Parallel()
	manifest := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/udp.yaml")
	kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kubectl(t, "delete", "-f", manifest) })
	kubectl(t, "-n", "shop", "rollout", "status", "deployment/beacon", "--timeout=120s")
	connected(t)
	// Where a node does not know the service yet, all that a port sends is lost that sent too early (conntrack keeps that).
	for _, address := range []string{"beacon.shop:5300", "beacon.shop:5301"} {
		require.Eventually(t, func() bool {
			c, err := net.Dial("udp", address)
			if err != nil {
				return false
			}
			defer c.Close()
			return askDatagram(c) != ""
		}, patience, 10*time.Millisecond, "the nodes know %s", address)
	}
	kept := []net.Conn{dialUDP(t, "beacon.shop:5300"), dialUDP(t, "beacon.shop:5301")}
	// UDP loses what it likes, so each is asked until it answers; but never does the wrong one answer for long.
	answers := func(who string) {
		t.Helper()
		for port, c := range kept {
			require.Eventually(t, func() bool { return askDatagram(c) == who+" question" }, patience, 10*time.Millisecond, "%s, port %d", who, port)
			require.Eventually(t, func() bool {
				return askDatagram(dialUDP(t, fmt.Sprintf("beacon.shop:%d", 5300+port))) == who+" question"
			}, patience, 10*time.Millisecond, "%s, port %d", who, port)
		}
	}
	answers("cluster")

	d := newIdleDeveloper(t, 0)
	for _, c := range []struct {
		flags []string
		says  string
	}{
		{[]string{"--port", "15300:5300"}, "service beacon has port 5300 for several protocols"},
		{[]string{"--port", "15300:5300/udp", "--me"}, "port 5353 of deployment/beacon is a UDP port, which has no requests to match"},
		{[]string{"--port", "15300-15301:5300-5302"}, "there are 2 ports of this laptop for 3 of the service"},
	} {
		out, err := d.try(append([]string{"intercept", "beacon", "-n", "shop"}, c.flags...)...)
		require.Error(t, err)
		require.Contains(t, out, c.says)
	}

	serve := func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		laptop := d.Command(ctx, filepath.Join(os.Getenv("DETOUR_ROOT"), "bin", "echo"), "-udp", "127.0.0.1:15300,127.0.0.1:15301", "-edition", "laptop")
		require.NoError(t, laptop.Start())
		stop = func() { cancel(); _ = laptop.Process.Kill(); _ = laptop.Wait() }
		t.Cleanup(stop)
		return stop
	}
	stop := serve()
	out := d.detour("intercept", "beacon", "--port", "15300-15301:5300-5301/udp", "-n", "shop")
	require.Contains(t, out, "port 5353/UDP of deployment/beacon -> 127.0.0.1:15300 (by targetPort")
	require.Contains(t, out, "port 5354/UDP of deployment/beacon -> 127.0.0.1:15301 (by nftables")
	require.NotContains(t, out, "warning")
	answers("laptop")

	stop()
	answers("cluster") // nothing listens on the laptop
	serve()
	answers("laptop")

	d.detour("leave", "beacon")
	answers("cluster")
	d.detour("intercept", "beacon", "--port", "15300:beacon", "--port", "15301:second", "-n", "shop")
	answers("laptop")
	require.NoError(t, syscall.Kill(d.daemonPID(), syscall.SIGKILL))
	answers("cluster")
}
