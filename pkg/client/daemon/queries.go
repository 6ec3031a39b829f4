package daemon

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/detour-dev/detour/pkg/client/environment"
	"github.com/detour-dev/detour/pkg/client/explain"
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

// List implements DaemonServiceServer.
func (s *Server) List(ctx context.Context, req *daemonv1.ListRequest) (*daemonv1.ListResponse, error) {
	now, err := s.live()
	if err != nil {
		return nil, err
	}
	if req.Server != "" && req.Server != now.server {
		return nil, status.Errorf(codes.FailedPrecondition, "connected to %s, not to %s", now.server, req.Server)
	}
	namespace := req.Namespace
	if namespace == "" {
		namespace = now.namespace
	}
	all, err := targets.List(ctx, now.config, namespace)
	if err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return &daemonv1.ListResponse{Targets: all}, nil
}

// Environment implements DaemonServiceServer.
func (s *Server) Environment(ctx context.Context, req *daemonv1.EnvironmentRequest) (*daemonv1.EnvironmentResponse, error) {
	now, err := s.live()
	if err != nil {
		return nil, err
	}
	clients, err := kubernetes.NewForConfig(now.config)
	if err != nil {
		return nil, status.Error(codes.Aborted, explain.Error(err, "connect to the cluster").Error())
	}
	pod, container, err := environment.Find(ctx, clients, now.namespace, req.Intercept)
	if err != nil {
		explained := explain.Context{Doing: "find the app's environment", Server: now.server, Namespace: now.namespace}.Error(err)
		return nil, status.Error(codes.Aborted, explained.Error())
	}
	variables, missing := environment.Of(pod, container, environment.NewCluster(ctx, clients, now.namespace))
	r := &daemonv1.EnvironmentResponse{Variables: map[string][]byte{}, Missing: missing}
	for name, value := range variables {
		r.Variables[name] = []byte(value)
	}
	return r, nil
}

// CheckIntercepts implements DaemonServiceServer.
func (s *Server) CheckIntercepts(ctx context.Context, req *daemonv1.CheckInterceptsRequest) (*daemonv1.CheckInterceptsResponse, error) {
	now, err := s.live()
	if err != nil {
		return nil, err
	}
	if len(req.Intercepts) < 2 {
		return &daemonv1.CheckInterceptsResponse{}, nil
	}
	clients, err := kubernetes.NewForConfig(now.config)
	if err != nil {
		return nil, status.Error(codes.Aborted, explain.Error(err, "connect to the cluster").Error())
	}
	service, err := clients.CoreV1().Services(now.namespace).Get(ctx, req.Intercepts[0].Service, metav1.GetOptions{})
	if err != nil {
		return &daemonv1.CheckInterceptsResponse{}, nil
	}
	if err := portConflict(req.Intercepts, service.Spec.Ports); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &daemonv1.CheckInterceptsResponse{}, nil
}
