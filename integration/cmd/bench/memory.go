package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// memory notes what stays resident of both ends some time after all that was measured before.
func (b *bench) memory() error {
	time.Sleep(10 * time.Second)
	daemon, err := resident("VmRSS", "environ", "DETOUR_RUN_DIR="+b.laptop.RunDir()+"\x00", "detour", "daemon")
	if err != nil {
		return err
	}
	manager, err := resident("VmRSS", "cmdline", "", "/traffic", "manager")
	b.figures = append(b.figures,
		figure{Name: "rss.daemon", Unit: "MiB", Value: daemon},
		figure{Name: "rss.manager", Unit: "MiB", Value: manager})
	return err
}

// residentAgent is what the pod of target pays for its agent: that and its keeper, now (VmRSS) or
// at the most (VmHWM).
func (b *bench) residentAgent(ctx context.Context, field string) (float64, error) {
	uid, err := output(exec.CommandContext(ctx, "kubectl", "-n", namespace, "get", "pods", "-l", "app=target",
		"--field-selector=status.phase=Running", "-o", "jsonpath={.items[0].metadata.uid}"))
	if err != nil {
		return 0, err
	}
	agent, err := resident(field, "cgroup", uid, "/traffic-agent", "agent")
	if err != nil {
		return 0, err
	}
	keeper, err := resident(field, "cgroup", uid, "/traffic-keeper")
	return agent + keeper, err
}

// resident is a figure of a process's memory in MiB. The process's command line begins with these
// words, but for its directory, and what tells it from others of that kind in another file of its
// directory in /proc.
func resident(field, file, mark string, words ...string) (float64, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range all {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		// The keeper's command line has the agent's in it.
		given := strings.Split(string(line), "\x00")
		if len(given) < len(words) || !strings.HasSuffix(given[0], words[0]) ||
			!slices.Equal(given[1:len(words)], words[1:]) {
			continue
		}
		about, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(strings.ReplaceAll(string(about), "_", "-"), strings.ReplaceAll(mark, "_",
			"-")) { // as systemd writes a pod's UID
			continue
		}
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue
		}
		_, rest, found := strings.Cut(string(status), field+":")
		if !found {
			continue // it has ended
		}
		kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		return kib / 1024, err
	}
	return 0, fmt.Errorf("no process %q of %q", strings.Join(words, " "), mark)
}
