package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"

	"github.com/spf13/pflag"

	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/install"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/client/tunnel"
	"github.com/detour-dev/detour/pkg/rootless"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// sessionOptions are the flags of the commands that connect.
type sessionOptions struct {
	*globalOptions
	managerNamespace string
	hostLoopback     bool
	transport        string
	network          networkFlags
}

func (o *sessionOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.managerNamespace, "manager-namespace", install.Namespace, "namespace of the traffic-manager")
	o.network.addFlags(f)
	f.Bool("rootless", rootlessByDefault(), // selectDaemon reads it
		"keep the cluster's network in namespaces, for 'detour run', and leave the laptop's network untouched; "+
			"false: create a network interface on the laptop, with sudo")
	f.BoolVar(&o.hostLoopback, "host-loopback", false,
		"with --rootless: let processes in the namespaces reach this laptop's 127.0.0.1, as "+
			rootless.HostLoopback.String())
	f.StringVar(&o.transport, "transport", "",
		"path of the tunnel: auto for the best that works, or only upgrade or portforward (default auto)")
}

func (o *sessionOptions) validate() error {
	if err := explain.Name("--manager-namespace", o.managerNamespace); err != nil {
		return err
	}
	if err := tunnel.CheckTransport(o.transport); err != nil {
		return err
	}
	if o.hostLoopback && !o.paths.Rootless {
		return errors.New("--host-loopback works only with --rootless: without it, processes reach the laptop's " +
			"loopback anyway; omit it")
	}
	return o.network.validate()
}

// session is a live session, and the connection to the daemon that holds it. The caller closes it.
type session struct {
	*daemonClient
	status *daemonv1.StatusResponse
}

// ensureSession returns the daemon's session. It starts the daemon and connects if that is needed.
// It fails if the session is in another namespace or cluster than the flags say.
func ensureSession(ctx context.Context, o *sessionOptions) (*session, error) {
	client, err := o.startDaemon(ctx)
	if err != nil {
		return nil, err
	}
	status, err := o.reuseOrConnect(ctx, client)
	if err != nil {
		client.Close()
		return nil, err
	}
	return &session{client, status}, nil
}

// reuseOrConnect returns the status of the daemon's session, which it creates if there is none.
func (o *sessionOptions) reuseOrConnect(
	ctx context.Context, client daemonv1.DaemonServiceClient,
) (*daemonv1.StatusResponse, error) {
	s, err := client.Status(ctx, &daemonv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	if !s.Connected {
		return o.connect(ctx, client)
	}
	if namespace := *o.kubeconfig.Namespace; namespace != "" && namespace != s.Namespace {
		return nil, fmt.Errorf("connected to namespace %s, not to %s: run `detour quit` first", s.Namespace, namespace)
	}
	if name := *o.kubeconfig.Context; name != "" && name != s.Context {
		return nil, fmt.Errorf("connected to context %s, not to %s: run `detour quit` first", s.Context, name)
	}
	if o.hostLoopback || o.transport != "" || o.network.changed() {
		return o.connect(ctx, client) // the daemon compares these flags with those of its session
	}
	return s, nil
}

// connect asks the daemon to connect, and prints the progress. If that fails, it ends a daemon that
// never had a session, because such a daemon is of no use. A daemon that has lost its session may
// be restoring it, and stays.
func (o *sessionOptions) connect(
	ctx context.Context, client daemonv1.DaemonServiceClient,
) (_ *daemonv1.StatusResponse, err error) {
	req, err := o.connectRequest()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			quitUnused(context.WithoutCancel(ctx), client)
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
			fmt.Fprintln(termSafeWriter{o.ErrOut}, m.Progress)
		}
		if m.Status != nil {
			return m.Status, nil
		}
	}
}

// quitUnused ends a daemon that never had a session.
func quitUnused(ctx context.Context, client daemonv1.DaemonServiceClient) {
	if s, err := client.Status(ctx, &daemonv1.StatusRequest{}); err == nil && !s.Connected && s.Session == "" {
		_, _ = client.Quit(ctx, &daemonv1.QuitRequest{})
	}
}

// connectRequest resolves files, flags and environment in this process, where they mean what the
// caller means.
func (o *sessionOptions) connectRequest() (*daemonv1.ConnectRequest, error) {
	loaded, packed, err := o.packKubeconfig()
	if err != nil {
		return nil, err
	}
	return &daemonv1.ConnectRequest{
		Kubeconfig:            packed,
		Context:               loaded.Context,
		Namespace:             loaded.Namespace,
		ManagerNamespace:      o.managerNamespace,
		User:                  userName(),
		HostLoopback:          o.hostLoopback,
		Transport:             o.transport,
		NetworkOverrides:      &o.network.overrides,
		RequestTimeoutSeconds: loaded.Config.Timeout.Seconds(),
	}, nil
}

// packKubeconfig returns the user's access to the cluster, and the same in the form in which the
// daemon gets it.
func (g *globalOptions) packKubeconfig() (*kubeconfig.Loaded, []byte, error) {
	loaded, err := kubeconfig.Load(g.kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	pack := kubeconfig.Pack
	if !g.paths.Rootless && os.Geteuid() != 0 {
		pack = kubeconfig.PackForRoot
	}
	packed, err := pack(loaded.Config)
	return loaded, packed, err
}

// userName returns the name of the user, also under sudo.
func userName() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}
