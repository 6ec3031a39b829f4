package suite

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// A download and an idle connection survive whatever happens to the paths between laptop and
// cluster.
func TestConnectionsSurviveEveryPath(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Target))
	kit.DeployTarget(t)
	target := kit.Query(t, "other", "service target", "{.spec.clusterIP}")
	r := kit.NewRoamingLaptop(t)
	r.BlockUDP(true)
	r.Detour("connect", "-n", "other")
	require.Equal(t, "api-server-upgrade", r.Status().Transport)

	idle, asking := r.Dial(target), r.Dial(target)
	kit.RequireTargetAnswers(t, idle)
	download := r.StartDownload(target)
	step := func(name string) {
		t.Helper()
		start := time.Now()
		download.WaitForProgress(t)
		kit.RequireTargetAnswers(t, asking)
		t.Logf("%s: all goes on, after %s", name, time.Since(start).Round(10*time.Millisecond))
	}
	step("upgrade")

	r.BlockUDP(false)
	r.WaitForTransport("direct-udp")
	require.Contains(t, r.Detour("status"), "up, direct-udp to 172.30.0.")
	require.NotEqual(t, "0", r.Status().TransportSinceUnix)
	step("direct")

	r.BlockUDP(true)
	r.WaitForTransport("api-server-upgrade")
	step("UDP is blocked")
	r.API.Cut()
	step("the connections to the API server are cut, and are the path")
	r.BlockUDP(false)
	r.WaitForTransport("direct-udp")
	step("UDP is back")

	r.API.Cut()
	step("the connection to the API server is cut")

	nothing := kit.Outage(t)
	r.API.Stall(true)
	r.BlockUDP(true)
	time.Sleep(nothing) // the test is about the length of the outage
	r.BlockUDP(false)
	r.API.Stall(false)
	step(fmt.Sprintf("nothing passed for %s", nothing))

	r.WaitForTransport("direct-udp")
	roamed := "172.30.0.190"
	r.Exec("ip", "address", "add", roamed+"/32", "dev", "eth0")
	for _, route := range strings.Split(strings.TrimSpace(r.Exec("ip", "-4", "route", "show", "dev", "eth0")), "\n") {
		r.Exec("ip", "route", "replace", strings.Fields(route)[0], "dev", "eth0", "src", roamed)
	}
	r.Exec("ip", "address", "del", r.Address().String()+"/32", "dev", "eth0")
	step("another source address")

	kit.RequireTargetAnswers(t, idle)
	require.Equal(t, "True", kit.Query(t, "other", "sessions",
		`{.items[0].status.conditions[?(@.type=="Ready")].status}`))
}

// A traffic-manager that restarts resets the connections through it, idle ones too, and the laptop
// recovers by itself.
func TestManagerRestart(t *testing.T) {
	kit.DeployTarget(t)
	target := kit.Query(t, "other", "service target", "{.spec.clusterIP}")
	r := kit.NewRoamingLaptop(t)
	r.Detour("connect", "-n", "other")
	r.WaitForTransport("direct-udp")
	for _, way := range []struct {
		name    string
		restart func()
	}{
		{
			"a process that is killed",
			func() { require.NoError(t, syscall.Kill(kit.ManagerProcess(t), syscall.SIGKILL)) },
		},
		{"a new pod", func() {
			kit.Kubectl(t, "-n", "detour-system", "rollout", "restart", "deployment",
				"traffic-manager")
		}},
	} {
		idle := r.Dial(target)
		kit.RequireTargetAnswers(t, idle)
		start := time.Now()
		way.restart()
		_, err := idle.ReadByte()
		require.ErrorIs(t, err, syscall.ECONNRESET, "%s: what was open is reset", way.name)
		t.Logf("%s: what was open is reset after %s", way.name, time.Since(start).Round(10*time.Millisecond))
		kit.Eventually(t, func() bool { return r.CanReach(target) }, "%s: what is new works", way.name)
		t.Logf("%s: what is new works after %s", way.name, time.Since(start).Round(10*time.Millisecond))
		require.True(t, r.Status().TunnelUp)
	}
	r.WaitForTransport("direct-udp")
}

// Where the API server cannot reach pods the tunnel goes through the kubelet, until a better path
// works.
func TestPortForward(t *testing.T) {
	kit.DeployTarget(t)
	target := kit.Query(t, "other", "service target", "{.spec.clusterIP}")
	pod := kit.Query(t, "detour-system", "pod -l app=traffic-manager", "{.items[0].status.podIP}")
	r := kit.NewRoamingLaptop(t)
	r.BlockUDP(true)
	r.Detour("connect", "-n", "other", "--transport", "portforward")
	require.Equal(t, "port-forward", r.Status().Transport)
	kit.RequireTargetAnswers(t, r.Dial(target))
	require.Contains(t, r.DetourFails("connect", "-n", "other", "--transport", "upgrade"), "detour quit")
	r.Detour("quit")

	apiServer := func(rules string) {
		t.Helper()
		out, err := exec.Command("nsenter", "--net=/run/netns/detour-cp", "--", "nft", rules).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	apiServer("add table inet unreachable;" +
		"add chain inet unreachable out { type filter hook output priority 0; };" +
		"add rule inet unreachable out ip daddr " + pod + " tcp dport 8081 drop")
	opened := false
	open := func() {
		if !opened {
			opened = true
			apiServer("delete table inet unreachable")
		}
	}
	t.Cleanup(open)
	r.Detour("connect", "-n", "other")
	require.Equal(t, "port-forward", r.Status().Transport)
	c := r.Dial(target)
	kit.RequireTargetAnswers(t, c)
	open()
	r.WaitForTransport("api-server-upgrade")
	kit.RequireTargetAnswers(t, c)
}
