package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
)

// daemonStartTimeout bounds the wait until a daemon that was started responds.
const daemonStartTimeout = 10 * time.Second

// startDaemon connects to the daemon, and starts it before that if it does not run. The caller
// closes the client.
func (g *globalOptions) startDaemon(ctx context.Context) (*daemonClient, error) {
	client, err := dialDaemon(ctx, g.paths)
	if !errors.Is(err, ipc.ErrNoDaemon) {
		return client, err
	}
	if _, err := kubeconfig.Load(g.kubeconfig); err != nil {
		return nil, err // the daemon would have nothing to connect to
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the detour binary: %w", err)
	}
	if g.paths.Rootless || os.Geteuid() == 0 {
		err = g.detachDaemon(exe)
	} else {
		err = g.startWithSudo(exe)
	}
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(daemonStartTimeout)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if client, err := dialDaemon(ctx, g.paths); !errors.Is(err, ipc.ErrNoDaemon) {
			return client, err
		}
		time.Sleep(pollInterval)
	}
	return nil, fmt.Errorf("the daemon did not start: see %s", g.paths.Log())
}

// startWithSudo starts root's daemon.
func (g *globalOptions) startWithSudo(exe string) error {
	if _, err := exec.LookPath("sudo"); err != nil {
		return errors.New("the daemon needs root to create a network interface: run detour as root, install sudo, " +
			"or omit --rootless=false")
	}
	fmt.Fprintln(g.ErrOut, "the daemon needs root to create a network interface: starting it with sudo")
	cmd := exec.Command("sudo", "--", exe, daemonCommand, "--detach")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = g.In, g.Out, g.ErrOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start the daemon with sudo: %w", err)
	}
	return nil
}

// daemonArgs returns the arguments that start the daemon in the selected mode. Root's daemon is not
// rootless by default, so it needs no flag under sudo.
func (g *globalOptions) daemonArgs() []string {
	if g.paths.Rootless {
		return []string{daemonCommand, "--rootless"}
	}
	return []string{daemonCommand}
}

// detachDaemon starts the daemon in the background. Its log is in the state directory.
func (g *globalOptions) detachDaemon(exe string) error {
	if err := g.paths.MakeDirectories(); err != nil {
		return err
	}
	log, err := os.OpenFile(g.paths.Log(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if errors.Is(err, syscall.ENOSPC) {
		fmt.Fprintln(g.ErrOut, "warning: the disk is full, so the daemon runs without its log:", g.paths.Log())
		log, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err != nil {
		return fmt.Errorf("open the daemon's log: %w: set DETOUR_STATE_DIR to a directory that you may write to", err)
	}
	defer log.Close()
	cmd := exec.Command(exe, g.daemonArgs()...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	detachFromTerminal(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	return cmd.Process.Release()
}

// restoreResolver undoes what a killed daemon has left on the laptop: its resolver configuration.
// The network interface and the routes have ended with the daemon's process. A user who may not
// restore the configuration gets a warning.
func (g *globalOptions) restoreResolver(ctx context.Context) {
	resolver := g.paths.Resolver()
	if os.Geteuid() != 0 {
		if resolver.LeftBehind() {
			fmt.Fprintln(g.ErrOut, "warning: root's daemon has ended without restoring /etc/resolv.conf, so names "+
				"may not resolve: "+
				"run `sudo detour status` to restore it")
		}
		return
	}
	if g.paths.Rootless || !noDaemon(ctx, g.paths) {
		return
	}
	if err := resolver.Restore(); err != nil && !errors.Is(err, os.ErrPermission) {
		fmt.Fprintln(g.ErrOut, "warning:", err)
	}
}

// noDaemon reports whether it is certain that no daemon runs at p.
func noDaemon(ctx context.Context, p ipc.Paths) bool {
	client, err := dialDaemon(ctx, p)
	if err == nil {
		client.Close()
	}
	return errors.Is(err, ipc.ErrNoDaemon)
}
