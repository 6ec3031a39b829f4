package laptop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/detour-dev/detour/integration/cluster"
)

// Laptop is a network namespace, a mount namespace and a UTS namespace, and the files in them that
// are not the machine's.
type Laptop struct {
	number  int
	cluster *cluster.Cluster
	lock    *os.File
	holder  *exec.Cmd
	hold    io.Closer // the holder's standard input: it ends when this is closed
	mounts  string    // the mount namespace, as a file
	uts     string    // the namespace of the host name, as a file
	once    sync.Once
	closed  error
}

// New makes the i-th laptop of the default cluster, which must be up, and clears away what a crash
// left of it. While another process has that laptop New waits for it, because the tests of several
// packages run at the same time.
func New(ctx context.Context, i int) (*Laptop, error) {
	c, err := cluster.Default()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a laptop is made of network namespaces and mounts: run this as root")
	}
	lock, err := take(ctx, c.LaptopDir(i)+".lock")
	if err != nil {
		return nil, fmt.Errorf("take laptop %d: %w", i, err)
	}
	l := &Laptop{number: i, cluster: c, lock: lock}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make laptop %d: %w", i, err), l.Close())
	}
	slog.Debug("made a laptop", "name", l.Name(), "address", l.Address())
	return l, nil
}

func (l *Laptop) build(ctx context.Context) error {
	if err := l.cluster.RemoveLaptop(l.number); err != nil {
		return fmt.Errorf("clear what was left: %w", err)
	}
	for _, d := range []string{l.Home(), l.RunDir(), l.StateDir()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// Nobody answers there, and the kernel says so at once: a test that forgot to choose a resolver
	// does not hang.
	if err := l.SetResolver(netip.MustParseAddr("127.0.0.1")); err != nil {
		return err
	}
	if err := l.cluster.JoinLaptop(ctx, l.number); err != nil {
		return err
	}
	return l.startHolder(ctx)
}

// prepare is what the holder runs. The names of other network namespaces are dropped: a mount of a
// name in here would keep a laptop or a pod alive that is removed outside.
const prepare = `echo "$0" > /proc/sys/kernel/hostname && mount --bind "$1" /etc/resolv.conf &&
{ umount --all --lazy --types nsfs; echo ready; exec cat; }`

// startHolder makes the mount namespace. It lives as long as its holder, which ends with the
// process that made it, even if that is killed: then the holder's input ends.
func (l *Laptop) startHolder(ctx context.Context) error {
	cmd := exec.Command("nsenter", "--net="+l.netns(), "--", "unshare", "--uts", "--mount", "--propagation", "private",
		"--",
		"sh", "-c", prepare, l.Name(), l.cluster.LaptopResolvConf(l.number))
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the holder of the mounts: %w", err)
	}
	l.holder, l.hold = cmd, in
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if !stop() {
		return ctx.Err()
	}
	if err != nil || line != "ready\n" {
		_ = cmd.Wait()
		l.holder = nil
		return fmt.Errorf("mount the resolver configuration: %s", strings.TrimSpace(complaint.String()))
	}
	l.mounts = fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid)
	l.uts = fmt.Sprintf("/proc/%d/ns/uts", cmd.Process.Pid)
	return nil
}

// Name is the laptop's host name, and the name of its network namespace for "ip netns".
func (l *Laptop) Name() string { return cluster.LaptopName(l.number) }

// Address is the laptop's own on the fabric.
func (l *Laptop) Address() netip.Addr { return l.cluster.LaptopAddress(l.number) }

// Home is the home directory, on the machine too.
func (l *Laptop) Home() string { return filepath.Join(l.cluster.LaptopDir(l.number), "home") }

// RunDir is $DETOUR_RUN_DIR, on the machine too.
func (l *Laptop) RunDir() string { return filepath.Join(l.cluster.LaptopDir(l.number), "run") }

// StateDir is $DETOUR_STATE_DIR, on the machine too.
func (l *Laptop) StateDir() string { return filepath.Join(l.cluster.LaptopDir(l.number), "state") }

func (l *Laptop) netns() string { return "/run/netns/" + l.Name() }

// SetResolver makes these the nameservers in the laptop's /etc/resolv.conf, as a new Wi-Fi would.
// At first it is 127.0.0.1.
func (l *Laptop) SetResolver(servers ...netip.Addr) error {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	// In place and not by renaming: the file is mounted.
	if err := os.WriteFile(l.cluster.LaptopResolvConf(l.number), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("configure the resolver of %s: %w", l.Name(), err)
	}
	return nil
}

// ResolvConf is what the laptop's /etc/resolv.conf says now.
func (l *Laptop) ResolvConf() (string, error) {
	raw, err := os.ReadFile(l.cluster.LaptopResolvConf(l.number))
	return string(raw), err
}

// Reach lets the laptop reach one more address on the fabric, such as cluster.HostAddress for a
// relay on the host.
func (l *Laptop) Reach(ctx context.Context, to netip.Addr) error {
	return l.cluster.RouteLaptop(ctx, l.number, to)
}

// Command prepares a program that runs inside. It starts in / (and not in cmd.Dir: entering the
// mounts changes it), with the laptop's own environment. Whatever it leaves in the background ends
// with the laptop.
func (l *Laptop) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if strings.Contains(name, "/") {
		if full, err := filepath.Abs(name); err == nil {
			name = full
		}
	}
	inside := []string{"--net=" + l.netns(), "--uts=" + l.uts, "--mount=" + l.mounts, "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(inside, args...)...)
	for _, v := range os.Environ() {
		key, _, _ := strings.Cut(v, "=")
		if key == "KUBECONFIG" || key == "HOME" || strings.HasPrefix(key, "DETOUR_") || strings.HasPrefix(key, "XDG_") {
			continue
		}
		cmd.Env = append(cmd.Env, v)
	}
	cmd.Env = append(cmd.Env, "HOME="+l.Home(), "DETOUR_RUN_DIR="+l.RunDir(), "DETOUR_STATE_DIR="+l.StateDir())
	return cmd
}

// Kubeconfig writes a copy of the administrator's kubeconfig and returns where. A server that is
// not empty replaces the URL of the API server, such as with that of a relay; its certificate is
// still verified as the API server's.
func (l *Laptop) Kubeconfig(server string) (string, error) {
	raw, err := os.ReadFile(l.cluster.Kubeconfig())
	if err != nil {
		return "", fmt.Errorf("read the administrator's kubeconfig: %w", err)
	}
	f, err := os.CreateTemp(l.Home(), "kubeconfig-")
	if err != nil {
		return "", fmt.Errorf("make a kubeconfig for %s: %w", l.Name(), err)
	}
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if server == "" {
		return f.Name(), nil
	}
	original, err := url.Parse(l.cluster.Server())
	if err != nil {
		return "", fmt.Errorf("parse the API server's URL: %w", err)
	}
	out, err := exec.Command(filepath.Join(l.cluster.Dir, "bin", "kubectl"), "--kubeconfig", f.Name(), "config",
		"set-cluster", "detour",
		"--server="+server, "--tls-server-name="+original.Hostname()).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("set the server in %s: %w: %s", f.Name(), err, out)
	}
	return f.Name(), nil
}

// Close ends everything that runs inside and removes the laptop.
func (l *Laptop) Close() error {
	l.once.Do(func() {
		if l.holder != nil {
			_ = l.hold.Close()
			_ = l.holder.Process.Kill()
			_ = l.holder.Wait()
		}
		l.closed = l.cluster.RemoveLaptop(l.number)
		_ = os.Remove(l.lock.Name()) // it is gone when the cluster was stopped meanwhile
		_ = l.lock.Close()
	})
	return l.closed
}
