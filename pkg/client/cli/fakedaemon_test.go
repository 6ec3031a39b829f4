package cli

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

// fakeDaemon serves the daemon's API on the socket of a test, with fixed responses.
type fakeDaemon struct {
	daemonv1.UnimplementedDaemonServiceServer
	status      *daemonv1.StatusResponse
	targets     []*daemonv1.Target
	environment *daemonv1.EnvironmentResponse
	quit        *daemonv1.QuitResponse
	tail        []*tailv1.TailResponse
	// refuse makes Intercept and Leave fail with this message.
	refuse string
	// stop ends the daemon's server.
	stop func()
}

// start serves the daemon's API until the test ends. Commands that the test runs find it.
func (f *fakeDaemon) start(t *testing.T, paths ipc.Paths) {
	listener, err := net.Listen("unix", paths.Socket())
	require.NoError(t, err)
	server := grpc.NewServer()
	daemonv1.RegisterDaemonServiceServer(server, f)
	f.stop = server.GracefulStop
	done := make(chan struct{})
	go func() { // the cleanup waits for it
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
}

// testPaths gives the commands of a test their own directories and a kubeconfig.
func testPaths(t *testing.T) ipc.Paths {
	dir := t.TempDir()
	t.Setenv("DETOUR_RUN_DIR", dir)
	t.Setenv("DETOUR_STATE_DIR", dir)
	file := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(`apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: 'https://k8s.example:6443'}}]
contexts: [{name: staging, context: {cluster: a, namespace: shop}}]
current-context: staging
`), 0o600))
	t.Setenv("KUBECONFIG", file)
	return ipc.Paths{Run: dir, State: dir}
}

// Status implements DaemonServiceServer.
func (f *fakeDaemon) Status(context.Context, *daemonv1.StatusRequest) (*daemonv1.StatusResponse, error) {
	return f.status, nil
}

// Connect implements DaemonServiceServer.
func (f *fakeDaemon) Connect(
	_ *daemonv1.ConnectRequest, stream grpc.ServerStreamingServer[daemonv1.ConnectResponse],
) error {
	if err := stream.Send(&daemonv1.ConnectResponse{Progress: "creating a session in namespace shop"}); err != nil {
		return err
	}
	return stream.Send(&daemonv1.ConnectResponse{Status: f.status})
}

// List implements DaemonServiceServer.
func (f *fakeDaemon) List(context.Context, *daemonv1.ListRequest) (*daemonv1.ListResponse, error) {
	return &daemonv1.ListResponse{Targets: f.targets}, nil
}

// Environment implements DaemonServiceServer.
func (f *fakeDaemon) Environment(context.Context, *daemonv1.EnvironmentRequest) (*daemonv1.EnvironmentResponse, error) {
	if f.environment == nil {
		return nil, status.Error(codes.Aborted, "no pod of service catalog is running")
	}
	return f.environment, nil
}

// CheckIntercepts implements DaemonServiceServer.
func (f *fakeDaemon) CheckIntercepts(
	context.Context, *daemonv1.CheckInterceptsRequest,
) (*daemonv1.CheckInterceptsResponse, error) {
	return &daemonv1.CheckInterceptsResponse{}, nil
}

// Intercept implements DaemonServiceServer.
func (f *fakeDaemon) Intercept(
	r *daemonv1.InterceptRequest, stream grpc.ServerStreamingServer[daemonv1.InterceptResponse],
) error {
	if f.refuse != "" {
		return status.Error(codes.Aborted, f.refuse)
	}
	if err := stream.Send(&daemonv1.InterceptResponse{Warning: "nothing listens on local port 8080 yet"}); err != nil {
		return err
	}
	return stream.Send(&daemonv1.InterceptResponse{Intercept: interceptOf(r)})
}

// interceptOf returns the active intercept of a request.
func interceptOf(r *daemonv1.InterceptRequest) *daemonv1.Intercept {
	i := &daemonv1.Intercept{
		Name: "catalog-1", Namespace: "shop", Service: r.Service, Port: r.Port, LocalPort: r.LocalPort,
		Workload: "deployment/catalog", Phase: "Active", Agents: "2/2", Redirect: "targetPort", ContainerPort: 8080,
		ServicePort: 80, Mode: r.Mode, Personal: r.Match != nil, TlsSecret: r.TlsSecret, Protocol: r.Protocol,
		Requests: "all requests", Container: "app",
	}
	if r.Match != nil {
		i.Requests = "header x-dev=alice"
	}
	if r.Workload != "" {
		i.Workload = strings.ToLower(r.Workload)
	}
	return i
}

// Leave implements DaemonServiceServer.
func (f *fakeDaemon) Leave(context.Context, *daemonv1.LeaveRequest) (*daemonv1.LeaveResponse, error) {
	if f.refuse != "" {
		return nil, status.Error(codes.Aborted, f.refuse)
	}
	return &daemonv1.LeaveResponse{Intercepts: []*daemonv1.Intercept{
		interceptOf(&daemonv1.InterceptRequest{Service: "catalog", LocalPort: 8080, Mode: "Intercept"}),
	}}, nil
}

// Tail implements DaemonServiceServer.
func (f *fakeDaemon) Tail(_ *tailv1.TailRequest, stream grpc.ServerStreamingServer[tailv1.TailResponse]) error {
	for _, m := range f.tail {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Quit implements DaemonServiceServer.
func (f *fakeDaemon) Quit(context.Context, *daemonv1.QuitRequest) (*daemonv1.QuitResponse, error) {
	go f.stop() // the cleanup waits for it
	return f.quit, nil
}

// execution is what the user sees of one command.
type execution struct {
	stdout, stderr string
	exitCode       int
}

// execute runs a command line as Main does, with the streams in memory.
func execute(t *testing.T, args ...string) execution {
	var out, errOut bytes.Buffer
	root := Command(genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: &out, ErrOut: &errOut})
	root.SetArgs(args)
	code := report(&errOut, root.ExecuteContext(t.Context()))
	return execution{stdout: out.String(), stderr: errOut.String(), exitCode: code}
}
