package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/client/install"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/version"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func (a *app) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", "", "json or yaml")
}

func (a *app) managerFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.managerNamespace, "manager-namespace", install.Namespace, "namespace of the traffic-manager")
}

func (a *app) connectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "connect", Short: "Put this laptop on the cluster's network", Args: cobra.NoArgs,
		Example: "  detour connect\n  detour connect -n shop --context staging\n  detour connect --also-proxy 10.20.0.0/16 --include-suffix corp.example.com\n  detour connect --map-subnet auto",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			client, done, err := a.start(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			s, err := a.connect(cmd.Context(), client)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { printStatus(w, s) })
		},
	}
	a.outputFlag(cmd)
	a.modeFlags(cmd)
	return cmd
}

// connect asks the daemon to connect. When that fails a daemon that never had a session is of no use and goes. One that has lost its own may be
// making it again.
func (a *app) connect(ctx context.Context, client daemonv1.DaemonServiceClient) (_ *daemonv1.StatusResponse, err error) {
	req, err := a.connectRequest()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if s, serr := client.Status(context.WithoutCancel(ctx), &daemonv1.StatusRequest{}); serr == nil && !s.Connected && s.Session == "" {
				_, _ = client.Quit(context.WithoutCancel(ctx), &daemonv1.QuitRequest{})
			}
		}
	}()
	stream, err := client.Connect(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.Progress != "" {
			fmt.Fprintln(harmlessly{a.ErrOut}, m.Progress)
		}
		if m.Status != nil {
			return m.Status, nil
		}
	}
}

// connectRequest resolves files, flags and environment here, where they mean what the caller means.
func (a *app) connectRequest() (*daemonv1.ConnectRequest, error) {
	loaded, err := kubeconfig.Load(a.flags)
	if err != nil {
		return nil, err
	}
	pack := kubeconfig.Pack
	if !a.paths.Rootless && os.Geteuid() != 0 {
		pack = kubeconfig.PackForRoot
	}
	packed, err := pack(loaded.Config)
	if err != nil {
		return nil, err
	}
	return &daemonv1.ConnectRequest{Kubeconfig: packed, Context: loaded.Context, Namespace: loaded.Namespace, ManagerNamespace: a.managerNamespace, User: userName(), HostLoopback: a.hostLoopback, Transport: a.transport, NetworkOverrides: &a.overrides, RequestTimeoutSeconds: loaded.Config.Timeout.Seconds()}, nil
}

func (a *app) quitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "quit", Short: "Leave all intercepts and put the laptop back as it was", Args: cobra.NoArgs, Example: "  detour quit",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			client, done, err := a.dial()
			if err != nil {
				return err
			}
			defer done()
			if client == nil {
				return a.printQuit(&daemonv1.QuitResponse{})
			}
			slow := time.AfterFunc(2*time.Second, func() {
				fmt.Fprintln(a.ErrOut, "waiting for what is under way: answers that this laptop still owes may take 10 s")
			})
			r, err := client.Quit(cmd.Context(), &daemonv1.QuitRequest{})
			slow.Stop()
			if err != nil {
				return err
			}
			for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				if again, close, err := a.dial(); err == nil && again == nil {
					break
				} else if err == nil {
					close()
				}
			}
			return a.printQuit(r)
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) printQuit(r *daemonv1.QuitResponse) error {
	value := map[string]any{"wasConnected": r.WasConnected}
	if r.NotDeleted != "" {
		value["untold"] = r.NotDeleted
	}
	return a.print(value, func(w io.Writer) {
		if r.WasConnected {
			fmt.Fprintln(w, "disconnected; the laptop is as it was")
		} else {
			fmt.Fprintln(w, "not connected")
		}
		if r.NotDeleted != "" {
			fmt.Fprintln(harmlessly{w}, "the cluster was not told, and ends the session when it has not heard of the laptop for its time:", r.NotDeleted)
		}
	})
}

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say what is connected and intercepted", Args: cobra.NoArgs, Example: "  detour status\n  detour status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			client, done, err := a.dial()
			if err != nil {
				return err
			}
			defer done()
			s := &daemonv1.StatusResponse{ClientVersion: version.Version}
			if client != nil {
				if s, err = client.Status(cmd.Context(), &daemonv1.StatusRequest{}); err != nil {
					return err
				}
			}
			return a.print(s, func(w io.Writer) { printStatus(w, s) })
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) leaveCommand() *cobra.Command {
	var port string
	cmd := &cobra.Command{
		Use: "leave SERVICE|WORKLOAD", Short: "Give a service's traffic, or a workload's work, back to the cluster", Args: cobra.ExactArgs(1), Example: "  detour leave catalog\n  detour leave deployment/worker",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			if args[0] == "" {
				return errors.New("the name is empty: say what to leave, `detour status` lists it")
			}
			if port == "" && cmd.Flags().Changed("port") {
				// A variable of the shell that is not set must not end them all.
				return errors.New("--port is empty: say which of the service's ports, or leave it out for all that are intercepted")
			}
			client, done, err := a.dial()
			if err != nil {
				return err
			}
			defer done()
			if client == nil {
				return errors.New("not connected: there is no intercept to leave")
			}
			r, err := client.Leave(cmd.Context(), &daemonv1.LeaveRequest{Service: args[0], Port: port})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) {
				for _, i := range r.Intercepts {
					printLeft(w, i)
				}
			})
		},
	}
	cmd.Flags().StringVar(&port, "port", "", "only the intercept of this service port, by name or number")
	a.outputFlag(cmd)
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions", Args: cobra.NoArgs, Example: "  detour version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			v := map[string]string{"client": version.Version}
			if client, done, err := a.dial(); err == nil && client != nil {
				defer done()
				if s, err := client.Status(cmd.Context(), &daemonv1.StatusRequest{}); err == nil {
					v["daemon"] = s.ClientVersion
					if s.ManagerVersion != "" {
						v["traffic-manager"] = s.ManagerVersion
					}
				}
			}
			return a.print(v, func(w io.Writer) {
				for _, part := range []string{"client", "daemon", "traffic-manager"} {
					if v[part] != "" {
						fmt.Fprintf(w, "%-16s %s\n", part, v[part])
					}
				}
			})
		},
	}
	a.outputFlag(cmd)
	return cmd
}
