package kit

import (
	"bytes"
	"fmt"
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

// Processes returns the process numbers of all processes whose command line starts with command.
// The cluster's nodes are on this machine, and so are the processes of its pods.
func Processes(t *testing.T, command ...string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(line), strings.Join(command, "\x00")+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// PodProcesses is Processes, restricted to the pods of an app of the shop.
func PodProcesses(t *testing.T, app string, command ...string) []int {
	t.Helper()
	uids := strings.Fields(Pods(t, app, "{{.metadata.uid}} "))
	return slices.DeleteFunc(Processes(t, command...), func(pid int) bool {
		group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		return err != nil || !slices.ContainsFunc(uids, func(uid string) bool {
			return strings.Contains(strings.ReplaceAll(string(group), "_", "-"), uid)
		})
	})
}

// ManagerProcess returns the process number of the traffic-manager.
func ManagerProcess(t *testing.T) int {
	t.Helper()
	all := Processes(t, "/traffic", "manager")
	require.NotEmpty(t, all, "no traffic-manager runs")
	return all[0]
}

// ResidentMemory returns the resident memory of processes, in the kernel's words.
func ResidentMemory(t *testing.T, pids []int) (all []string) {
	t.Helper()
	for _, pid := range pids {
		all = append(all, statusField(t, pid, "VmRSS"))
	}
	return all
}

func statusField(t *testing.T, pid int, field string) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(status), field+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

// AgentMemory returns the largest memory figure of the subject's agents, in KiB. field is VmRSS or
// VmHWM.
func AgentMemory(t *testing.T, field string) (largest int) {
	t.Helper()
	for _, pid := range PodProcesses(t, "subject", "/traffic-agent", "agent") {
		kib, err := strconv.Atoi(strings.Fields(statusField(t, pid, field))[0])
		require.NoError(t, err)
		largest = max(largest, kib)
	}
	require.NotZero(t, largest, "no agent of the subject runs on this machine")
	return largest
}

// AgentRules returns the agent's nftables rules in the network of an app's only pod.
func AgentRules(t *testing.T, app string) string {
	t.Helper()
	uid := Pods(t, app, "{{if not .metadata.deletionTimestamp}}{{.metadata.uid}}{{end}}")
	all, err := filepath.Glob("/proc/[0-9]*/cgroup")
	require.NoError(t, err)
	for _, path := range all {
		group, err := os.ReadFile(path)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(group), "_", "-"), uid) {
			continue
		}
		network := "--net=" + filepath.Join(filepath.Dir(path), "ns/net")
		out, err := exec.Command("nsenter", network, "--", "nft", "list", "table", "inet", "detour").CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	require.Fail(t, "no process of the pod runs on this machine")
	return ""
}

// AttachedAgents returns the processes of agents that run in ephemeral containers.
func AttachedAgents(t *testing.T) []int {
	t.Helper()
	var pids []int
	for _, pid := range Processes(t, "/traffic-agent", "agent") {
		environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && bytes.Contains(environment, []byte(`"attached":`)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// WaitForAttachedAgentsToEnd waits until no attached agent runs: they end by themselves. It calls
// meanwhile again and again.
func WaitForAttachedAgentsToEnd(t *testing.T, meanwhile func()) {
	t.Helper()
	const states = "jsonpath={.items[*].status.ephemeralContainerStatuses[*].state.running}"
	Eventually(t, func() bool {
		meanwhile()
		return Kubectl(t, "-n", "shop", "get", "pods", "-o", states) == "" && len(AttachedAgents(t)) == 0
	}, "the attached agents end")
}

// Buffer collects what a command prints. It can be read while the command runs.
type Buffer struct {
	mu sync.Mutex
	// mu guards the field below.
	b bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// processesWith returns the processes that have a variable in their environment and whose command
// line ends with words.
func processesWith(t *testing.T, variable string, words ...string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, path := range all {
		environment, err := os.ReadFile(path)
		if err != nil || !slices.Contains(strings.Split(string(environment), "\x00"), variable) {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && strings.HasSuffix(strings.TrimRight(string(line), "\x00"), strings.Join(words, "\x00")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}
