package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/detour-dev/detour/integration/cluster/laptop"
)

const (
	namespace = "bench"
	// The node whose kube-proxy the plain route goes through.
	gateway = "172.30.0.11"
)

type bench struct {
	root, only string
	rounds     int
	each       time.Duration

	laptop *laptop.Laptop // has detour
	plain  *laptop.Laptop // has routes into the cluster
	// kubeconfig is the laptop's.
	kubeconfig string
	address    map[string]string // ClusterIPs by service
	figures    []figure
}

func (b *bench) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	for _, part := range []struct {
		names string // prefixes of what it measures
		run   func(context.Context) error
	}{
		{"connect", b.connect},
		{"intercept rss.agent", b.intercept},
		{"dns.local", b.names},
		{"out.slow", b.slow},
		{"out.portforward out.upgrade out.udp", b.out},
		{"in.tcp", b.in},
		{"in.http idle.http", b.personal},
		{"idle.rps idle.echo", b.idle},
		{"out.connections rss.daemon rss.manager", b.connections},
	} {
		// The others stand on the first two.
		wanted := b.only == "" || part.names == "connect" || part.names == "intercept rss.agent"
		for _, name := range strings.Fields(part.names) {
			wanted = wanted || strings.HasPrefix(name, b.only) || strings.HasPrefix(b.only, name)
		}
		if !wanted {
			continue
		}
		say("measuring: %s", part.names)
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.names, err)
		}
	}
	return report(b.root, b.figures)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "== "+format+"\n", args...) }

func (b *bench) prepare(ctx context.Context) error {
	say("two services of the same kind on one node, and two laptops")
	apply := exec.CommandContext(ctx, "kubectl", "apply", "-f", "-")
	apply.Stdin = strings.NewReader(manifests)
	if _, err := output(apply); err != nil {
		return err
	}
	if _, err := output(exec.CommandContext(ctx, "detour", "install", "--image",
		"detour.local/traffic:dev")); err != nil {
		return err
	}
	b.address = map[string]string{}
	for _, name := range []string{"direct", "target", "catalog-direct", "catalog-target", "stock"} {
		if _, err := output(exec.CommandContext(ctx, "kubectl", "-n", namespace, "rollout", "status",
			"deployment/"+name, "--timeout=60s")); err != nil {
			return err
		}
		address, err := output(exec.CommandContext(ctx, "kubectl", "-n", namespace, "get", "service", name, "-o",
			"jsonpath={.spec.clusterIP}"))
		if err != nil {
			return err
		}
		b.address[name] = address
	}
	var err error
	if b.laptop, err = laptop.New(ctx, 0); err != nil {
		return err
	}
	if b.plain, err = laptop.New(ctx, 1); err != nil {
		return err
	}
	if b.kubeconfig, err = b.laptop.Kubeconfig(""); err != nil {
		return err
	}
	_, err = output(b.plain.Command(ctx, "ip", "route", "add", "10.96.0.0/16", "via", gateway))
	return err
}

// close puts everything back, also when the bench was interrupted.
func (b *bench) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all []error
	if b.laptop != nil {
		if _, err := b.detour(ctx, "quit"); err != nil {
			all = append(all, err)
		}
		all = append(all, b.laptop.Close())
	}
	if b.plain != nil {
		all = append(all, b.plain.Close())
	}
	for _, args := range [][]string{{"detour", "uninstall"}, {
		"kubectl", "delete", "namespace", namespace,
		"--ignore-not-found", "--wait=true",
	}} {
		if _, err := output(exec.CommandContext(ctx, args[0], args[1:]...)); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// output runs a command to its end and returns what it printed.
func output(cmd *exec.Cmd) (string, error) {
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, out, errors.String())
	}
	return strings.TrimSpace(string(out)), nil
}

func (b *bench) detour(ctx context.Context, args ...string) (string, error) {
	return output(b.laptop.Command(ctx, "detour", append(args, "--kubeconfig", b.kubeconfig)...))
}

// times runs a command of both sides in turns and notes the median duration in seconds.
func (b *bench) times(name string, rounds int, value, plain func() error) error {
	var values, plains []float64
	for range rounds {
		for _, side := range []struct {
			run  func() error
			into *[]float64
		}{{plain, &plains}, {value, &values}} {
			start := time.Now()
			if err := side.run(); err != nil {
				return err
			}
			*side.into = append(*side.into, time.Since(start).Seconds())
		}
	}
	b.figures = append(b.figures, compared(name, "s", median(values), median(plains)))
	return nil
}

// connect.s is beside one request with kubectl.
func (b *bench) connect(ctx context.Context) error {
	return b.times("connect.s", b.rounds, func() error {
		if _, err := b.detour(ctx, "quit"); err != nil {
			return err
		}
		_, err := b.detour(ctx, "connect", "-n", namespace)
		return err
	}, func() error {
		_, err := output(b.laptop.Command(ctx, "kubectl", "--kubeconfig", b.kubeconfig, "get", "--raw", "/readyz"))
		return err
	})
}

// intercept.s is the first one, with the rollout that brings the agent, beside a rollout without
// detour.
func (b *bench) intercept(ctx context.Context) error {
	serving := b.laptop.Command(ctx, b.program(), "serve", "--http", "127.0.0.1:8080", "--bulk", "127.0.0.1:9000")
	if err := serving.Start(); err != nil {
		return fmt.Errorf("start the laptop's service: %w", err)
	}
	err := b.times("intercept.s", 1, func() error {
		_, err := b.detour(ctx, "intercept", "target", "--port", "8080:http")
		return err
	}, func() error {
		if _, err := output(exec.CommandContext(ctx, "kubectl", "-n", namespace, "rollout", "restart",
			"deployment/direct")); err != nil {
			return err
		}
		_, err := output(exec.CommandContext(ctx, "kubectl", "-n", namespace, "rollout", "status", "deployment/direct",
			"--timeout=60s"))
		return err
	})
	if err != nil {
		return err
	}
	if _, err := b.detour(ctx, "intercept", "target", "--port", "9000:bulk"); err != nil {
		return err
	}
	if _, err := b.detour(ctx, "intercept", "catalog-target", "--port", "8080"); err != nil {
		return err
	}
	for _, service := range []string{"target", "catalog-target"} {
		if _, err := b.detour(ctx, "leave", service); err != nil {
			return err
		}
	}
	time.Sleep(3 * time.Second)
	mib, err := b.residentAgent(ctx, "VmRSS")
	b.figures = append(b.figures, figure{Name: "rss.agent", Unit: "MiB", Value: mib})
	return err
}

func (b *bench) program() string { return filepath.Join(b.root, "bin", "bench") }

// out: from the laptop to a service, through the VIF over each of the tunnel's paths, and by a
// plain route. The last daemon stays, for all that follows.
func (b *bench) out(ctx context.Context) error {
	for _, p := range []struct{ name, flag, transport string }{
		{"out.portforward", "portforward", "port-forward"},
		{"out.upgrade", "upgrade", "api-server-upgrade"},
		{"out.udp", "auto", "direct-udp"},
	} {
		if !strings.HasPrefix(p.name, b.only) && !strings.HasPrefix(b.only, p.name) {
			continue
		}
		if _, err := b.detour(ctx, "quit"); err != nil {
			return err
		}
		if _, err := b.detour(ctx, "connect", "-n", namespace, "--transport", p.flag); err != nil {
			return err
		}
		if err := b.onPath(ctx, p.transport); err != nil {
			return err
		}
		if err := b.path(ctx, p.name, []string{"up", "down", "lat1", "rps16"},
			end{from: b.laptop, to: b.address["direct"]}, end{from: b.plain, to: b.address["direct"]}); err != nil {
			return err
		}
		if err := b.onPath(ctx, p.transport); err != nil {
			return err
		}
	}
	return nil
}

// onPath waits until the tunnel takes a path.
func (b *bench) onPath(ctx context.Context, transport string) error {
	var status struct{ Transport string }
	for range 50 {
		out, err := b.detour(ctx, "status", "-o", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return err
		}
		if status.Transport == transport {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("the tunnel's path is %q and not %q", status.Transport, transport)
}

// in: from the cluster's side to a service, once answered on the laptop and once in its pod.
func (b *bench) in(ctx context.Context) error {
	for _, port := range []string{"8080:http", "9000:bulk"} {
		if _, err := b.detour(ctx, "intercept", "target", "--port", port); err != nil {
			return err
		}
	}
	if err := b.path(ctx, "in.tcp", []string{"up", "down", "lat1", "rps16"},
		end{from: b.plain, to: b.address["target"]}, end{from: b.plain, to: b.address["direct"]}); err != nil {
		return err
	}
	_, err := b.detour(ctx, "leave", "target")
	return err
}

// personal: a service that somebody intercepts for marked requests, asked by others (idle.http) and
// with the mark (in.http).
func (b *bench) personal(ctx context.Context) error {
	if _, err := b.detour(ctx, "intercept", "target", "--port", "8080:http", "--header", mark+"=1"); err != nil {
		return err
	}
	others := end{from: b.plain, to: b.address["target"], web: true}
	direct := end{from: b.plain, to: b.address["direct"], web: true}
	if err := b.path(ctx, "idle.http", []string{"lat1", "rps16"}, others, direct); err != nil {
		return err
	}
	marked := others
	marked.marked = true
	if err := b.path(ctx, "in.http", []string{"lat1", "rps16", "up", "down"}, marked, direct); err != nil {
		return err
	}
	mib, err := b.residentAgent(ctx, "VmHWM")
	if err != nil {
		return err
	}
	b.figures = append(b.figures, figure{Name: "rss.agent.http", Unit: "MiB", Value: mib})
	_, err = b.detour(ctx, "leave", "target")
	return err
}

// idle: what an agent without an intercept costs its service. idle.rps is of a service that does
// what services do, the shop's catalog, which asks another one and answers JSON; idle.echo is of
// one that does nothing, where two more passes through TCP weigh the most.
func (b *bench) idle(ctx context.Context) error {
	catalog, echo := [2]end{
		{from: b.plain, to: b.address["catalog-target"]},
		{from: b.plain, to: b.address["catalog-direct"]},
	}, [2]end{
		{from: b.plain, to: b.address["target"]},
		{from: b.plain, to: b.address["direct"]},
	}
	if err := b.path(ctx, "idle", []string{"rps1", "rps16"}, catalog[0], catalog[1]); err != nil {
		return err
	}
	return b.path(ctx, "idle.echo", []string{"rps1", "rps16", "up", "down"}, echo[0], echo[1])
}

// end is from where to where a client measures.
type end struct {
	from   *laptop.Laptop
	to     string
	web    bool // bytes are moved over HTTP
	marked bool
}

func (b *bench) path(ctx context.Context, prefix string, whats []string, value, plain end) error {
	for _, what := range whats {
		name := prefix + "." + what
		if !strings.HasPrefix(name, b.only) {
			continue
		}
		var values, plains, raws []float64
		for range b.rounds {
			p, err := b.measure(ctx, what, plain)
			if err != nil {
				return err
			}
			v, err := b.measure(ctx, what, value)
			if err != nil {
				return err
			}
			values, plains = append(values, v), append(plains, p)
			if prefix == "out.upgrade" && (what == "up" || what == "down") {
				r, err := number(value.from.Command(ctx, b.program(), "raw", "--kubeconfig", b.kubeconfig,
					fmt.Sprintf("--up=%t", what == "up"), "--for", b.each.String()))
				if err != nil {
					return err
				}
				raws = append(raws, r)
			}
		}
		f := compared(name, units[what], median(values), median(plains))
		say("%s %.4g (plain %.4g, ratio %.3f)", name, f.Value, *f.Plain, *f.Ratio)
		if raws != nil {
			raw := median(raws)
			f.Raw = &raw
			say("%s is %.3f of %.4g", name, f.Value/raw, raw)
		}
		b.figures = append(b.figures, f)
	}
	return nil
}

func (e end) bulkPort() string {
	if e.web {
		return "80"
	}
	return "9000"
}

var units = map[string]string{"up": "bit/s", "down": "bit/s", "lat1": "ms", "rps1": "req/s", "rps16": "req/s"}

func (b *bench) measure(ctx context.Context, what string, e end) (float64, error) {
	switch what {
	case "up", "down":
		return number(e.from.Command(ctx, b.program(), "bulk", "--to", e.to+":"+e.bulkPort(),
			fmt.Sprintf("--web=%t", e.web), fmt.Sprintf("--up=%t", what == "up"), "--for", b.each.String()))
	case "rps16":
		return b.requests(ctx, e, "2", "16")
	case "rps1":
		return b.requests(ctx, e, "1", "1")
	default:
		rate, err := b.requests(ctx, e, "1", "1")
		return 1000 / rate, err
	}
}

var (
	wrkRate = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkBad  = regexp.MustCompile(`(Socket errors|Non-2xx).*`)
)

func (b *bench) requests(ctx context.Context, e end, threads, connections string) (float64, error) {
	args := []string{"-t" + threads, "-c" + connections, "-d" + b.each.String(), "http://" + e.to + "/"}
	if e.marked {
		args = append(args, "-H", mark+": 1")
	}
	out, err := output(e.from.Command(ctx, "wrk", args...))
	if err != nil {
		return 0, err
	}
	if bad := wrkBad.FindString(out); bad != "" {
		return 0, fmt.Errorf("requests failed: %s", bad)
	}
	found := wrkRate.FindStringSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("wrk printed no rate: %s", out)
	}
	return strconv.ParseFloat(found[1], 64)
}
