package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MaxLaptops is how many laptops there is room for: their names must stay valid names of links, at
// most 15 letters.
const MaxLaptops = 100

// laptopPrefix is what the names of all laptops, and of nothing else, start with.
const laptopPrefix = "detour-laptop"

// LaptopName is the name of the i-th laptop's network namespace, of its link on the fabric's bridge
// and of its directory.
func LaptopName(i int) string { return laptopPrefix + strconv.Itoa(i) }

// LaptopAddress is the address of the i-th laptop on the fabric; i counts from 0.
func (c *Cluster) LaptopAddress(i int) netip.Addr {
	return netip.MustParseAddr(c.address(byte(100 + i)))
}

// LaptopDir is where the i-th laptop's files are.
func (c *Cluster) LaptopDir(i int) string { return c.path(LaptopName(i)) }

// LaptopResolvConf is the file that is /etc/resolv.conf in the i-th laptop. RemoveLaptop knows what
// runs in the laptop by this mount, also when a crash left nothing else of it.
func (c *Cluster) LaptopResolvConf(i int) string {
	return filepath.Join(c.LaptopDir(i), "resolv.conf")
}

// JoinLaptop makes the i-th laptop's network namespace, with a link to the fabric and no route but
// to the API server and the nodes: a network that would lead to pods, services, the host or another
// laptop would hide that a tunnel does not work.
func (c *Cluster) JoinLaptop(ctx context.Context, i int) error {
	if i < 0 || i >= MaxLaptops {
		return fmt.Errorf("there is no laptop %d: they count from 0 to %d", i, MaxLaptops-1)
	}
	if _, err := os.Stat(netnsPath(c.controlPlane())); err != nil {
		return fmt.Errorf("the local cluster is down, start it with make cluster-up: %w", err)
	}
	name := LaptopName(i)
	var b strings.Builder
	in := func(ns, line string) { fmt.Fprintf(&b, "nsenter --net=%s -- %s\n", netnsPath(ns), line) }
	fmt.Fprintf(&b, "ip netns add %s\n", name)
	// The same address each time, which the others may still know.
	fmt.Fprintf(&b, "ip link add %s netns %s type veth peer name eth0 address 02:de:70:00:01:%02x netns %s\n", name,
		c.controlPlane(), i, name)
	in(c.controlPlane(), "ip link set "+name+" master fabric up")
	in(name, "ip link set lo up")
	// Without this the laptop would see the others on the link by their link-local addresses.
	in(name, "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1")
	in(name, "ip addr add "+c.LaptopAddress(i).String()+"/32 dev eth0")
	in(name, "ip link set eth0 up")
	if err := script(b.String()); err != nil {
		return err
	}
	places := []string{c.apiServer()}
	for _, n := range c.runningNodes() {
		places = append(places, n.address)
	}
	for _, p := range places {
		if err := c.RouteLaptop(ctx, i, netip.MustParseAddr(p)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// RouteLaptop lets the i-th laptop reach one more address on the fabric.
func (c *Cluster) RouteLaptop(ctx context.Context, i int, to netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return run("nsenter", "--net="+netnsPath(LaptopName(i)), "--", "ip", "route", "replace", to.String()+"/32", "dev",
		"eth0", "src", c.LaptopAddress(i).String())
}

// HostAddress is the host's address on the fabric. Laptops do not reach it, unless RouteLaptop says
// so.
func (c *Cluster) HostAddress() netip.Addr { return netip.MustParseAddr(c.address(thisHost)) }

// runningNodes are the nodes the cluster was started with, which need not be as many as this
// Cluster would start.
func (c *Cluster) runningNodes() []node {
	running := *c
	if raw, err := os.ReadFile(c.path("up")); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
			running.Nodes = n
		}
	}
	return running.nodes()
}

// RemoveLaptop ends every process in the i-th laptop and takes away its link, namespaces and files.
// It is no error when there is nothing, or only a part.
func (c *Cluster) RemoveLaptop(i int) error {
	name := LaptopName(i)
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids := inLaptop(name)
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s cannot be removed, its processes do not end: %v", name, pids)
		}
		kill(pids, syscall.SIGKILL)
		waitGone(pids, time.Second)
	}
	// The kernel takes the link away too, with the namespace, but some time later: a new laptop
	// could not have the name yet.
	if err := run("nsenter", "--net="+netnsPath(c.controlPlane()), "--", "ip", "link", "show", name); err == nil {
		if err := run("nsenter", "--net="+netnsPath(c.controlPlane()), "--", "ip", "link", "del", name); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(netnsPath(name)); err == nil {
		if err := run("ip", "netns", "del", name); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for the namespace %s: %w", name, err)
	}
	if err := os.RemoveAll(c.LaptopDir(i)); err != nil {
		return fmt.Errorf("remove the files of %s: %w", name, err)
	}
	return nil
}

// removeLaptops takes away all laptops. The directories count too: a namespace's name made in
// another mount namespace is not visible here.
func (c *Cluster) removeLaptops() error {
	spaces, _ := filepath.Glob(netnsPath(laptopPrefix + "*"))
	dirs, _ := filepath.Glob(c.path(laptopPrefix + "*"))
	for _, path := range append(spaces, dirs...) {
		i, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), laptopPrefix))
		if err != nil {
			continue // a lock
		}
		if err := c.RemoveLaptop(i); err != nil {
			return err
		}
	}
	return nil
}

// inLaptop lists the processes in a laptop's network namespace or in its mount namespace, this
// process excepted: it may have threads there. A process may have left one of the two, and after a
// crash only one may be known.
func inLaptop(name string) []int {
	space, spaceErr := os.Stat(netnsPath(name))
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || zombie(pid) {
			continue
		}
		if spaceErr == nil {
			other, err := os.Stat(filepath.Join("/proc", e.Name(), "ns", "net"))
			if err == nil && os.SameFile(space, other) {
				pids = append(pids, pid)
				continue
			}
		}
		mounts, err := os.ReadFile(filepath.Join("/proc", e.Name(), "mountinfo"))
		if err == nil && strings.Contains(string(mounts), "/"+name+"/resolv.conf") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func netnsPath(name string) string { return filepath.Join("/run/netns", name) }
