package kit

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// connections counts the tests that use the machine's own connection to the shop. Some of them run
// side by side.
var connections struct {
	sync.Mutex
	n int
}

// Connect connects this machine to the shop. The last test that uses the connection ends it. The
// first one starts without whatever a failed test may have left: a daemon that is connected
// elsewhere, or intercepts.
func Connect(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		connections.Lock()
		defer connections.Unlock()
		if connections.n--; connections.n == 0 {
			Detour(t, "quit")
		}
	})
	connections.Lock()
	if connections.n == 0 {
		_, _ = Run("detour", "quit")
	}
	connections.n++
	out, err := Run("detour", "connect", "-n", "shop")
	connections.Unlock()
	require.NoError(t, err, out)
	// Go's resolver rereads /etc/resolv.conf after 5 s at the earliest.
	Eventually(t, func() bool { _, err := net.LookupHost("catalog.shop"); return err == nil },
		"this process resolves catalog.shop")
}

// MachineSession returns the name of this machine's own session, or an empty name while there is
// none.
func MachineSession() string {
	var status struct{ Session string }
	out, _ := Run("detour", "status", "-o", "json")
	_ = json.Unmarshal([]byte(out), &status)
	return status.Session
}

// Session names a Session of the cluster.
type Session struct{ Namespace, Name string }

// SessionsOf returns the sessions of a host. Each laptop and each user of the suite has a host name
// of its own.
func SessionsOf(t *testing.T, host string) []Session {
	t.Helper()
	Kubectl(t, "get", "sessions", "-A")
	return sessionsOf(host)
}

func sessionsOf(host string) (all []Session) {
	const hosts = `jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name} {.spec.host}{"\n"}{end}`
	out, _ := Run("kubectl", "get", "sessions", "-A", "-o", hosts)
	for line := range strings.Lines(out) {
		if words := strings.Fields(line); len(words) == 3 && words[2] == host {
			all = append(all, Session{Namespace: words[0], Name: words[1]})
		}
	}
	return all
}

// HostName returns this machine's host name.
func HostName(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	require.NoError(t, err)
	return name
}

// DaemonPID returns the process number of this machine's daemon.
func DaemonPID(t *testing.T) int {
	t.Helper()
	all := Daemons(t)
	require.Len(t, all, 1)
	return all[0]
}

// Daemons returns the process numbers of the suite's own daemons. Others may run on the machine.
func Daemons(t *testing.T) (pids []int) {
	t.Helper()
	out, _ := Run("pgrep", "-f", "detour daemon$")
	own := "DETOUR_RUN_DIR=" + os.Getenv("DETOUR_RUN_DIR")
	for _, word := range strings.Fields(out) {
		environment, err := os.ReadFile(filepath.Join("/proc", word, "environ"))
		if err == nil && slices.Contains(strings.Split(string(environment), "\x00"), own) {
			pid, err := strconv.Atoi(word)
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// WaitForDaemonExit waits until this machine has no daemon.
func WaitForDaemonExit(t *testing.T) {
	t.Helper()
	Eventually(t, func() bool { return len(Daemons(t)) == 0 }, "the daemon ends")
}

// HostState returns everything of this machine that detour could have changed: routes, addresses,
// links, rules and resolver.
func HostState(t *testing.T) string {
	t.Helper()
	var all string
	for _, args := range [][]string{
		{"route", "show", "table", "all"},
		{"-6", "route", "show", "table", "all"},
		{"-brief", "address"},
		{"-brief", "link"},
		{"rule"},
	} {
		out, err := exec.Command("ip", args...).Output()
		require.NoError(t, err)
		all += string(out)
	}
	resolver, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	return all + string(resolver)
}

// HostAddress returns an address of this machine that is not loopback.
func HostAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback")
	return ""
}

// RouteDevice returns the interface by which a packet to an address would leave this machine.
func RouteDevice(t *testing.T, to string) string {
	t.Helper()
	out, err := exec.Command("ip", "-json", "route", "get", to).Output()
	require.NoError(t, err, to)
	var all []struct{ Dev string }
	require.NoError(t, json.Unmarshal(out, &all))
	require.Len(t, all, 1)
	return all[0].Dev
}
