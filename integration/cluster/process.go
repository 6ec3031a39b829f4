package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// start runs a program in a network namespace, in the background, and records its pid. nsenter and
// not "ip netns exec": the latter remounts /sys, and the kubelet would not find its cgroups.
func (c *Cluster) start(name, ns string, args ...string) error {
	log, err := os.Create(c.path("logs", name+".log"))
	if err != nil {
		return fmt.Errorf("make the log of %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + ns, "--"}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+c.path("bin")+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	if err := os.WriteFile(c.path("pids", name), []byte(pid), 0o644); err != nil {
		return fmt.Errorf("record the pid of %s: %w", name, err)
	}
	return cmd.Process.Release()
}

// recorded lists the pids of the programs of this cluster that still run.
func (c *Cluster) recorded() map[string]int {
	running := map[string]int{}
	entries, _ := os.ReadDir(c.path("pids"))
	for _, e := range entries {
		raw, err := os.ReadFile(c.path("pids", e.Name()))
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err == nil && c.owns(pid) {
			running[e.Name()] = pid
		}
	}
	return running
}

// owns reports whether a process is of this cluster: its command line names the cluster's
// directory. A recycled pid does not.
func (c *Cluster) owns(pid int) bool {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && strings.Contains(string(raw), c.Dir+"/")
}

// strays are processes of the cluster that no pid file names: containerd's shims, and what a crash
// left.
func (c *Cluster) strays() []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && pid != os.Getppid() && c.owns(pid) {
			exe, _ := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
			switch filepath.Base(exe) {
			case "cluster", "bash", "sh", "make", "go", "tail", "less", "kubectl":
				continue // a person's or our own
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func kill(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig)
	}
}

func waitGone(pids []int, d time.Duration) {
	deadline := time.Now().Add(d)
	for time.Now().Before(deadline) {
		alive := false
		for _, pid := range pids {
			if !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) && !zombie(pid) {
				alive = true
			}
		}
		if !alive {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func zombie(pid int) bool {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err != nil || strings.Contains(string(raw), ") Z ")
}

// run executes a short command and gives its output when it fails.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// script runs commands, one a line, words separated by blanks.
func script(lines string) error {
	for line := range strings.Lines(lines) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := run(words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}
