package suite

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// askDatagram sends a datagram to a UDP port and returns the answer, or an empty text if none
// arrives in time.
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

// During an intercept datagrams reach the laptop and answers come back. Without a laptop they reach
// the app.
func TestUDP(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine))
	manifest := kit.Testdata("udp.yaml")
	kit.Kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "-f", manifest) })
	kit.WaitForRollout(t, "shop", "deployment/beacon")
	kit.Connect(t)
	// A datagram that is sent before the node knows the service is lost, and so are all later ones
	// from the same port: conntrack remembers the destination.
	for _, address := range []string{"beacon.shop:5300", "beacon.shop:5301"} {
		kit.Eventually(t, func() bool {
			c, err := net.Dial("udp", address)
			if err != nil {
				return false
			}
			defer c.Close()
			return askDatagram(c) != ""
		}, "the nodes know %s", address)
	}
	kept := []net.Conn{dialUDP(t, "beacon.shop:5300"), dialUDP(t, "beacon.shop:5301")}
	// UDP may lose datagrams, so each port is asked until the right edition answers.
	answers := func(who string) {
		t.Helper()
		for port, c := range kept {
			kit.Eventually(t, func() bool { return askDatagram(c) == who+" question" }, "%s, port %d", who, port)
			kit.Eventually(t, func() bool {
				return askDatagram(dialUDP(t, fmt.Sprintf("beacon.shop:%d", 5300+port))) == who+" question"
			}, "%s, port %d", who, port)
		}
	}
	answers("cluster")

	d := kit.NewLaptop(t)
	for _, c := range []struct {
		flags []string
		says  string
	}{
		{[]string{"--port", "15300:5300"}, "service beacon has port 5300 for several protocols"},
		{
			[]string{"--port", "15300:5300/udp", "--me"},
			"port 5353 of deployment/beacon is a UDP port, which has no requests to match",
		},
		{[]string{"--port", "15300-15301:5300-5302"}, "there are 2 ports of this laptop for 3 of the service"},
	} {
		out, err := d.Try(append([]string{"intercept", "beacon", "-n", "shop"}, c.flags...)...)
		require.Error(t, err)
		require.Contains(t, out, c.says)
	}

	serve := func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		laptop := d.Command(ctx, kit.Path("bin", "echo"), "-udp", "127.0.0.1:15300,127.0.0.1:15301", "-edition",
			"laptop")
		require.NoError(t, laptop.Start())
		stop = func() { cancel(); _ = laptop.Process.Kill(); _ = laptop.Wait() }
		t.Cleanup(stop)
		return stop
	}
	stop := serve()
	out := d.Detour("intercept", "beacon", "--port", "15300-15301:5300-5301/udp", "-n", "shop")
	require.Contains(t, out, "port 5353/UDP of deployment/beacon -> 127.0.0.1:15300 (by targetPort")
	require.Contains(t, out, "port 5354/UDP of deployment/beacon -> 127.0.0.1:15301 (by nftables")
	require.NotContains(t, out, "warning")
	answers("laptop")

	stop()
	answers("cluster") // nothing listens on the laptop
	serve()
	answers("laptop")

	d.Detour("leave", "beacon")
	answers("cluster")
	d.Detour("intercept", "beacon", "--port", "15300:beacon", "--port", "15301:second", "-n", "shop")
	answers("laptop")
	require.NoError(t, syscall.Kill(d.DaemonPID(), syscall.SIGKILL))
	answers("cluster")
}
