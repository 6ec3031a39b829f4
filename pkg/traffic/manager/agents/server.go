package agents

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/inject"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// keepaliveInterval is how long a connection may be silent before it is probed, and how long
	// the answer may take. An agent whose node is lost closes nothing.
	keepaliveInterval = 5 * time.Second
	// tokenSize is the size in bytes of the token that opens relay connections.
	tokenSize = 32
)

// Serve serves the agents on address until ctx ends. It takes over config.
func (r *Registry) Serve(ctx context.Context, address string, config *tls.Config) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen for agents: %w", err)
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveInterval, Timeout: keepaliveInterval}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: keepaliveInterval, PermitWithoutStream: true,
		}),
	)
	agentv1.RegisterAgentServiceServer(server, r)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve the agents: %w", err)
	}
	return nil
}

// Connect implements AgentServiceServer.
func (r *Registry) Connect(stream grpc.BidiStreamingServer[agentv1.AgentMessage, agentv1.Config]) error {
	pod, err := r.authenticate(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetHello() == nil {
		return status.Error(codes.InvalidArgument, "the first message must be a hello")
	}
	select {
	case <-r.Initial.Done():
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	a := &agent{
		pod: pod, serves: first.GetHello().Ports, wake: make(chan struct{}, 1), tokens: map[string][]byte{},
	}
	r.mu.Lock()
	r.connected[a] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.connected, a)
		r.mu.Unlock()
		r.notify()
	}()

	received := make(chan error, 1)
	// Nobody waits for this goroutine: it ends with the stream, which ends when Connect returns.
	go func() { received <- r.receive(stream, a) }()
	for {
		if err := stream.Send(r.configFor(a)); err != nil {
			return err
		}
		select {
		case err := <-received:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-a.wake:
		}
	}
}

// receive records what an agent sends until its stream ends.
func (r *Registry) receive(stream grpc.BidiStreamingServer[agentv1.AgentMessage, agentv1.Config], a *agent) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if applied := m.GetApplied(); applied != nil {
			r.recordApplied(a, applied)
			r.notify()
		}
		if report := m.GetReport(); report != nil {
			r.report(a.pod, report)
		}
	}
}

func (r *Registry) recordApplied(a *agent, applied *agentv1.Applied) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.applied = applied.Generation
	a.ports = map[int32]*agentv1.PortState{}
	for _, p := range applied.Ports {
		a.ports[int32(p.Port)] = p
	}
}

// configFor returns the configuration of one agent: the intercepts of its pod and ports, each with
// a token that stays the same from one configuration to the next.
func (r *Registry) configFor(a *agent) *agentv1.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	config := &agentv1.Config{Generation: r.generation}
	for _, port := range r.tailedLocked(a.pod) {
		if slices.Contains(a.serves, port) {
			config.Tailed = append(config.Tailed, port)
		}
	}
	tokens := map[string][]byte{}
	for uid, i := range r.active {
		if !i.Pods[a.pod] || !slices.Contains(a.serves, uint32(i.Port)) {
			continue
		}
		token := a.tokens[uid]
		if token == nil {
			token = make([]byte, tokenSize)
			_, _ = rand.Read(token) // never fails, see crypto/rand
		}
		tokens[uid] = token
		config.Intercepts = append(config.Intercepts, &agentv1.Intercept{
			Uid: uid, Port: uint32(i.Port), Token: token, RelayAddress: r.config.RelayAddress, Match: i.Match,
			ErrorOnFailure: i.ErrorOnFailure, Wiretap: i.Wiretap,
			LocalPlaintext: i.LocalPlaintext, Datagrams: i.Datagrams,
		})
	}
	a.tokens = tokens
	return config
}

// authenticate returns the UID of the pod that an agent runs in, found by the agent's token. An
// attached agent may have no token but the pod's own for the API server.
func (r *Registry) authenticate(ctx context.Context) (podUID string, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ") {
		return "", status.Error(codes.Unauthenticated, "the agent sent no token")
	}
	token := strings.TrimPrefix(values[0], "Bearer ")
	uid, _, err := r.reviewToken(ctx, token, agentconfig.Audience)
	if err == nil || len(md.Get(agentconfig.AttachedHeader)) == 0 {
		return uid, err
	}
	uid, key, err := r.reviewToken(ctx, token)
	if err != nil {
		return "", err
	}
	var pod corev1.Pod
	if err := r.config.Reader.Get(ctx, key, &pod); err != nil || string(pod.UID) != uid || !inject.IsAttached(&pod) {
		return "", status.Error(codes.Unauthenticated, "the token belongs to a pod without an attached agent")
	}
	return uid, nil
}

// reviewToken returns the pod that a token is bound to. The token must be for one of the audiences,
// or for the API server if there are none.
func (r *Registry) reviewToken(
	ctx context.Context, token string, audiences ...string,
) (uid string, pod client.ObjectKey, err error) {
	review := &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}
	if err := r.config.Reviewer.Create(ctx, review); err != nil {
		r.config.Log.Warn("reviewing an agent's token failed", "err", err)
		return "", pod, status.Error(codes.Unavailable, "the API server could not review the token")
	}
	user := review.Status.User
	uids := user.Extra["authentication.kubernetes.io/pod-uid"]
	names := user.Extra["authentication.kubernetes.io/pod-name"]
	account := strings.Split(user.Username, ":") // system:serviceaccount:NAMESPACE:NAME
	if !review.Status.Authenticated || len(uids) != 1 || len(names) != 1 || len(account) != 4 {
		return "", pod, status.Error(codes.Unauthenticated, "the token is not bound to a pod")
	}
	return uids[0], client.ObjectKey{Namespace: account[2], Name: names[0]}, nil
}
