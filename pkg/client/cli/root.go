// Package cli is the detour command line: a thin client of the daemon, with kubectl's manners.
package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/status"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"

	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/client/daemon"
	"github.com/detour-dev/detour/pkg/client/install"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// app is what the commands share.
type app struct {
	genericiooptions.IOStreams
	flags            *genericclioptions.ConfigFlags
	paths            ipc.Paths
	managerNamespace string
	output           string
	rootless         bool
	hostLoopback     bool
	transport        string
	overrides        daemonv1.NetworkOverrides
}

// Command is the root command.
func Command(streams genericiooptions.IOStreams) *cobra.Command {
	a := &app{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true)}
	root := &cobra.Command{
		Use: "detour", Short: "Run one service of a Kubernetes application on your laptop", SilenceUsage: true, SilenceErrors: true,
		Long: "detour sends the traffic of one service in the cluster to a process on your laptop,\nand puts the laptop on the cluster's network meanwhile.",
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			// client-go's own log lines are not for people.
			klog.SetSlogLogger(slog.New(slog.DiscardHandler))
			if cmd.Name() == credential.Command || cmd.Parent() == nil {
				return nil // the one may run as root still, the other says only how detour is called
			}
			if err := a.choose(cmd); err != nil {
				return err
			}
			if cmd.Name() != "daemon" && cmd.Name() != "hold" {
				a.putBack()
			}
			return nil
		},
	}
	a.flags.AddFlags(root.PersistentFlags())
	root.AddCommand(a.connectCommand(), a.quitCommand(), a.statusCommand(), a.listCommand(), a.interceptCommand(), a.leaveCommand(), a.tailCommand(), a.runCommand(), a.shellCommand(), a.versionCommand(), a.daemonCommand(), a.holdCommand(), credentialCommand(streams),
		install.Command(streams, a.flags, output{a}), install.UninstallCommand(streams, a.flags, output{a}))
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var value *pflag.InvalidValueError
		if errors.As(err, &value) { // what Go's parsers say is not for people
			switch flag, cause := value.GetFlag(), value.Unwrap().Error(); {
			case flag.Value.Type() == "bool":
				err = fmt.Errorf("--%s is true or false, not %q", flag.Name, value.GetValue())
			case strings.HasPrefix(cause, "time: "):
				err = fmt.Errorf("--%s %q is no time: write for example %s", flag.Name, value.GetValue(), flag.DefValue)
			}
		}
		return fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())
	})
	for _, cmd := range root.Commands() {
		called(cmd)
	}
	roofs(root)
	return root
}

// called has a command say how it is called when its arguments are not those. Cobra only counts them.
func called(cmd *cobra.Command) {
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w: it is called as `%s`", err, strings.TrimSuffix(cmd.CommandPath(), cmd.Name())+cmd.Use)
	}
}

// roofs has the commands that only have others under them print their help, and refuse what none of those is called. Cobra takes that for a
// wish for help.
func roofs(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	for _, shell := range completion.Commands() {
		called(shell)
	}
	for _, cmd := range append(root.Commands(), root) {
		switch {
		case cmd.Name() == "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				if found, _, err := root.Find(args); err != nil || found == root && len(args) > 0 {
					return noCommand(root, args)
				}
				return nil
			}
		case cmd.HasSubCommands():
			cmd.Args = noCommand
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
}

// noCommand refuses the name of a command that parent has not.
func noCommand(parent *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if near := parent.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("there is no command %q: did you mean `%s %s`?", args[0], parent.CommandPath(), near[0])
	}
	return fmt.Errorf("there is no command %q: see `%s --help`", args[0], parent.CommandPath())
}

// Main runs the command line and returns the exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	if err := Command(streams).ExecuteContext(ctx); err != nil {
		var exit exitError
		if errors.As(err, &exit) {
			if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // only what was joined here has a text of its own
				fmt.Fprintln(harmlessly{os.Stderr}, "detour:", joined.Unwrap()[0])
			}
			return int(exit)
		}
		if s, ok := status.FromError(err); ok {
			err = errors.New(s.Message())
		}
		fmt.Fprintln(harmlessly{os.Stderr}, "detour:", err)
		return 1
	}
	return 0
}

// start makes sure that a daemon runs, and reaches it.
func (a *app) start(ctx context.Context) (daemonv1.DaemonServiceClient, func(), error) {
	client, done, err := a.dial()
	if client != nil || err != nil {
		return client, done, err
	}
	if _, err := kubeconfig.Load(a.flags); err != nil {
		return nil, nil, err // no daemon for what it could not connect to
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find the detour binary: %w", err)
	}
	cmd := exec.Command(exe, a.daemonArgs()...)
	if !a.paths.Rootless && os.Geteuid() != 0 {
		if _, err := exec.LookPath("sudo"); err != nil {
			return nil, nil, errors.New("the network interface needs root: run detour as root, install sudo, or leave out --rootless=false")
		}
		fmt.Fprintln(a.ErrOut, "the daemon makes a network interface and needs root: starting it with sudo")
		cmd = exec.Command("sudo", "--", exe, "daemon", "--detach")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.ErrOut
		if err := cmd.Run(); err != nil {
			return nil, nil, fmt.Errorf("start the daemon with sudo: %w", err)
		}
	} else if err := a.detach(cmd); err != nil {
		return nil, nil, err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if client, done, err = a.dial(); client != nil || err != nil {
			return client, done, err
		}
	}
	return nil, nil, fmt.Errorf("the daemon did not start: see %s", a.paths.Log())
}

// daemonArgs start the daemon of the mode that was chosen. Without a flag root's, and sudo makes root, is the network interface.
func (a *app) daemonArgs() []string {
	if a.paths.Rootless {
		return []string{"daemon", "--rootless"}
	}
	return []string{"daemon"}
}

// detach starts the daemon in the background, with its log in the state directory.
func (a *app) detach(cmd *exec.Cmd) error {
	if err := a.paths.MakeDirectories(); err != nil {
		return err
	}
	log, err := os.OpenFile(a.paths.Log(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if errors.Is(err, syscall.ENOSPC) {
		fmt.Fprintln(a.ErrOut, "warning: the disk is full, the daemon has no log:", a.paths.Log())
		log, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err != nil {
		return fmt.Errorf("open the daemon's log: %w: set DETOUR_STATE_DIR to a directory that you may write to", err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	background(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	return cmd.Process.Release()
}

func (a *app) daemonCommand() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use: "daemon", Short: "Run the daemon in the foreground", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if detach {
				exe, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find the detour binary: %w", err)
				}
				return a.detach(exec.Command(exe, a.daemonArgs()...))
			}
			return daemon.Run(cmd.Context(), a.paths, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel()})))
		},
	}
	cmd.Flags().BoolVar(&a.rootless, "rootless", canRootless(), "keep the network in namespaces")
	cmd.Flags().BoolVar(&detach, "detach", false, "go to the background")
	return cmd
}

func credentialCommand(streams genericiooptions.IOStreams) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: credential.Command, Short: "Run a credential plugin for the daemon", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if path != "" {
				return credential.PrintToken(streams.Out, path)
			}
			return credential.Run()
		},
	}
	cmd.Flags().StringVar(&path, credential.TokenFlag, "", "print the token of this file")
	return cmd
}

func userName() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

// logLevel is the daemon's: DETOUR_LOG (debug, info, warn, error), info when it is not set.
func logLevel() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(os.Getenv("DETOUR_LOG"))); err != nil {
		return slog.LevelInfo
	}
	return level
}
