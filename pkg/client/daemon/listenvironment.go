package daemon

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/environment"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/client/targets"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// live returns the session, or the error of an RPC that needs one.
func (s *Server) live() (*session, error) {
	now := s.get()
	if now == nil || now.isEnded() {
		return nil, status.Error(codes.FailedPrecondition, "not connected: run `detour connect` first")
	}
	return now, nil
}

// callerConfig returns the access to the cluster that the caller's kubeconfig gives, within the
// caller's rights on the laptop.
func callerConfig(ctx context.Context, raw []byte, timeoutSeconds float64) (*rest.Config, error) {
	raw, err := confine(ctx, raw)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	config, err := kubeconfig.Unpack(raw)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	config.Timeout = cluster.DefaultRequestTimeout
	if timeoutSeconds > 0 {
		config.Timeout = time.Duration(timeoutSeconds * float64(time.Second))
	}
	return config, nil
}

// List implements DaemonServiceServer.
func (s *Server) List(ctx context.Context, req *daemonv1.ListRequest) (*daemonv1.ListResponse, error) {
	config, err := callerConfig(ctx, req.Kubeconfig, req.RequestTimeoutSeconds)
	if err != nil {
		return nil, err
	}
	all, err := targets.List(ctx, config, req.Namespace)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return &daemonv1.ListResponse{Targets: all}, nil
}

// Environment implements DaemonServiceServer.
func (s *Server) Environment(
	ctx context.Context, req *daemonv1.EnvironmentRequest,
) (*daemonv1.EnvironmentResponse, error) {
	now, err := s.live()
	if err != nil {
		return nil, err
	}
	config, err := callerConfig(ctx, req.Kubeconfig, req.RequestTimeoutSeconds)
	if err != nil {
		return nil, err
	}
	if config.Host != now.server {
		return nil, status.Errorf(codes.FailedPrecondition, "the kubeconfig is for %s, but detour is connected to %s: "+
			"use the same cluster, or run `detour quit` first", config.Host, now.server)
	}
	variables, missing, err := environment.Read(ctx, config, now.request.Namespace, req.Intercept)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	r := &daemonv1.EnvironmentResponse{Variables: map[string][]byte{}, Missing: missing}
	for name, value := range variables {
		r.Variables[name] = []byte(value)
	}
	return r, nil
}

// CheckIntercepts implements DaemonServiceServer.
func (s *Server) CheckIntercepts(
	ctx context.Context, req *daemonv1.CheckInterceptsRequest,
) (*daemonv1.CheckInterceptsResponse, error) {
	now, err := s.live()
	if err != nil {
		return nil, err
	}
	if len(req.Intercepts) < 2 {
		return &daemonv1.CheckInterceptsResponse{}, nil
	}
	services := now.cluster.Core.CoreV1().Services(now.request.Namespace)
	service, err := services.Get(ctx, req.Intercepts[0].Service, metav1.GetOptions{})
	if err != nil {
		return &daemonv1.CheckInterceptsResponse{}, nil
	}
	if err := portConflict(req.Intercepts, service.Spec.Ports); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &daemonv1.CheckInterceptsResponse{}, nil
}
