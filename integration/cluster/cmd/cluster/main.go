// Command cluster starts and stops the local Kubernetes of the suites.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/integration/cluster"
)

func main() {
	// The cluster outlives this program: it must not keep a caller's files, such as a lock.
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func run(ctx context.Context, args []string) error {
	const usage = "usage: cluster build|up|down|status|kubeconfig|load-image TAR...|kubectl ARGS... [--nodes N]"
	if len(args) == 0 {
		return errors.New(usage)
	}
	c, err := cluster.Default()
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(os.Getenv("NODES")); err == nil {
		c.Nodes = n
	}
	log := slog.New(slog.NewTextHandler(os.Stderr,
		&slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}}))
	command, rest := args[0], args[1:]
	switch command {
	case "build":
		source := filepath.Join("integration", "cluster", "build")
		_, _, err := c.ArgoRollouts(ctx, source, log)
		return errors.Join(c.Build(ctx, source, log), err)
	case "up":
		return up(ctx, c, rest, log)
	case "down":
		second, err := cluster.Second()
		if err != nil {
			return err
		}
		return errors.Join(second.Down(log), c.Down(log))
	case "status":
		fmt.Print(c.Status())
		return nil
	case "kubeconfig":
		fmt.Println(c.Kubeconfig())
		return nil
	case "load-image":
		return c.LoadImages(rest...)
	case "kubectl":
		cmd := exec.CommandContext(ctx, filepath.Join(c.Dir, "bin", "kubectl"),
			append([]string{"--kubeconfig", c.Kubeconfig()}, rest...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	return errors.New(usage)
}

// up starts the cluster and prints the path of its kubeconfig.
func up(ctx context.Context, c *cluster.Cluster, args []string, log *slog.Logger) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.IntVar(&c.Nodes, "nodes", c.Nodes, "how many nodes")
	source := flags.String("source", filepath.Join("integration", "cluster", "build"),
		"where the build modules are")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the local cluster makes network namespaces and mounts: run this as root")
	}
	if err := c.Up(ctx, *source, log); err != nil {
		return err
	}
	fmt.Println(c.Kubeconfig())
	return nil
}
