package cluster

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Down ends every process of the cluster and takes away its mounts, namespaces, links and files.
// The built programs stay.
func (c *Cluster) Down(log *slog.Logger) error {
	if c.number == 1 {
		if err := c.removeLaptops(); err != nil {
			return err
		}
	}
	if pids := c.strays(); len(pids) > 0 {
		log.Info("stopping", "processes", len(pids))
		// Kubelets and containerds first, so that nobody starts a container again.
		kill(pids, syscall.SIGKILL)
		waitGone(pids, 10*time.Second)
	}
	// Containers are no children of ours, but their processes sit in the nodes' cgroups.
	for range 50 {
		pids := c.inCgroups()
		if len(pids) == 0 {
			break
		}
		kill(pids, syscall.SIGKILL)
		waitGone(pids, time.Second)
	}
	if err := c.unmount(); err != nil {
		return err
	}
	_ = run("ip", "link", "del", c.hostLink())
	names, _ := filepath.Glob(netnsPath(c.name() + "-*"))
	for _, n := range names {
		if err := run("ip", "netns", "del", filepath.Base(n)); err != nil {
			return err
		}
	}
	c.removeCgroups()
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("remove %s: %w", c.Dir, err)
	}
	return nil
}

// unmount takes away the mounts below the directory, deepest first; the pods' network namespaces
// are among them.
func (c *Cluster) unmount() error {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("list the mounts: %w", err)
	}
	defer f.Close()
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 1 && strings.HasPrefix(fields[1], c.Dir+"/") {
			points = append(points, fields[1])
		}
	}
	sort.Slice(points, func(i, j int) bool { return len(points[i]) > len(points[j]) })
	for _, p := range points {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

func (c *Cluster) cgroups() []string {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.name() + "-node*")
	return dirs
}

func (c *Cluster) inCgroups() []int {
	seen := map[int]bool{}
	for _, top := range c.cgroups() {
		_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil
			}
			raw, _ := os.ReadFile(path)
			for _, word := range strings.Fields(string(raw)) {
				var pid int
				if _, err := fmt.Sscan(word, &pid); err == nil && !zombie(pid) {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	var pids []int
	for pid := range seen {
		pids = append(pids, pid)
	}
	return pids
}

func (c *Cluster) removeCgroups() {
	for _, top := range c.cgroups() {
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		sort.Slice(dirs, func(i, j int) bool { return len(dirs[i]) > len(dirs[j]) })
		for _, d := range dirs {
			_ = syscall.Rmdir(d)
		}
	}
}

// Status is one line a program, and whether the API server answers.
func (c *Cluster) Status() string {
	var b strings.Builder
	running := c.recorded()
	names := make([]string, 0, len(running))
	for n := range running {
		names = append(names, n)
	}
	sort.Strings(names)
	if len(names) == 0 {
		return "the cluster is down; start it with: make cluster-up\n"
	}
	for _, n := range names {
		fmt.Fprintf(&b, "%-26s pid %d\n", n, running[n])
	}
	if err := c.answers("/readyz"); err != nil {
		fmt.Fprintf(&b, "the API server does not answer: %v\n", err)
	} else {
		fmt.Fprintf(&b, "the API server is ready; kubeconfig %s\n", c.Kubeconfig())
	}
	return b.String()
}
