package manager

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/wellknown"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// desired is one intercept in force, as the reconciler decided it.
type desired struct {
	uid       string
	namespace string
	service   string
	port      int32
	pods      map[string]bool // UIDs of the pods it applies to
	address   string          // the laptop's VIF address
	match     *agentv1.Match  // nil for everything
	wiretap   bool            // copies only
	plaintext bool            // without TLS, where the agent looks into it
	datagrams bool            // port is one of UDP
	errors    bool            // an error and not the app, when the laptop cannot be had
	laptop    string          // user@host
}

// agents knows the connected agents, what they should do and what they have confirmed. It is in memory: agents that
// lose their manager connect again, and the acknowledgements come anew.
type agents struct {
	agentv1.UnimplementedAgentServiceServer
	reader   client.Reader
	reviewer client.Client
	options  Options
	first    *first

	mu         sync.Mutex
	generation uint64
	inForce    map[string]desired // by intercept UID
	connected  map[*agentState]struct{}
	watchers   map[*watcher]struct{}        // of those who tail
	dropped    map[string]map[string]uint64 // copies that a laptop did not get, by intercept UID and pod UID
	notify     func()
}

type agentState struct {
	pod     string   // UID; a pod may have several: its sidecar, and those that were attached for a port each
	serves  []uint32 // ports of the app
	wake    chan struct{}
	applied uint64
	tokens  map[string][]byte
	ports   map[int32]*agentv1.PortState // what it found out about the app's ports
}

func newAgents(reader client.Reader, reviewer client.Client, o Options) *agents {
	return &agents{reader: reader, reviewer: reviewer, options: o, first: newFirst(), inForce: map[string]desired{}, connected: map[*agentState]struct{}{}, watchers: map[*watcher]struct{}{}, dropped: map[string]map[string]uint64{}, notify: func() {}}
}

// set puts an intercept in force, or out of force when d is nil.
func (a *agents) set(uid string, d *desired) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, had := a.inForce[uid]
	if d == nil {
		if !had {
			return
		}
		delete(a.inForce, uid)
		delete(a.dropped, uid)
	} else {
		if had && old.port == d.port && old.address == d.address && proto.Equal(old.match, d.match) && old.plaintext == d.plaintext && samePods(old.pods, d.pods) {
			return
		}
		a.inForce[uid] = *d
	}
	a.generation++
	a.wake()
}

// wake makes every agent's configuration be sent again.
func (a *agents) wake() {
	for s := range a.connected {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func samePods(a, b map[string]bool) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if !b[k] {
			return false
		}
	}
	return true
}

// confirmed says whether the agents of a pod that stand before a port have applied everything up to now, and so follow (or no longer
// follow) every intercept as it stands.
func (a *agents) confirmed(pod string, port int32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := false
	for s := range a.connected {
		if s.pod == pod && slices.Contains(s.serves, uint32(port)) {
			if s.applied < a.generation {
				return false
			}
			found = true
		}
	}
	return found
}

// found is what the agents of pods have found out about a port's TLS that keeps them from looking inside, or nil.
func (a *agents) found(pods map[string]bool, port int32) *agentv1.PortState {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := range a.connected {
		if pods[s.pod] && s.ports[port] != nil {
			return s.ports[port]
		}
	}
	return nil
}

// relayTarget is the laptop's address of an intercept, if the token is one that was given for it.
func (a *agents) relayTarget(uid string, token []byte) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, ok := a.inForce[uid]
	if !ok {
		return "", false
	}
	for s := range a.connected {
		if t, ok := s.tokens[uid]; ok && subtle.ConstantTimeCompare(t, token) == 1 {
			return d.address, true
		}
	}
	return "", false
}

func (a *agents) serve(ctx context.Context, certs *certificates) error {
	config := &tls.Config{}
	certs.configure(config)
	listener, err := net.Listen("tcp", net.JoinHostPort("", fmt.Sprint(wellknown.AgentPort)))
	if err != nil {
		return fmt.Errorf("listen for agents: %w", err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 5 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
	agentv1.RegisterAgentServiceServer(server, a)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve the agents: %w", err)
	}
	return nil
}

// Connect implements AgentServiceServer.
func (a *agents) Connect(stream grpc.BidiStreamingServer[agentv1.AgentMessage, agentv1.Config]) error {
	pod, err := a.authenticate(stream.Context())
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
	case <-a.first.over:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	s := &agentState{pod: pod, serves: first.GetHello().Ports, wake: make(chan struct{}, 1), tokens: map[string][]byte{}}
	a.mu.Lock()
	a.connected[s] = struct{}{}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.connected, s)
		a.mu.Unlock()
		a.notify()
	}()

	received := make(chan error, 1)
	go func() { // ends with the stream, which ends when Connect returns
		for {
			m, err := stream.Recv()
			if err != nil {
				received <- err
				return
			}
			if applied := m.GetApplied(); applied != nil {
				a.mu.Lock()
				s.applied = applied.Generation
				s.ports = map[int32]*agentv1.PortState{}
				for _, p := range applied.Ports {
					s.ports[int32(p.Port)] = p
				}
				a.mu.Unlock()
				a.notify()
			}
			if report := m.GetReport(); report != nil {
				a.report(s.pod, report)
			}
		}
	}()
	for {
		if err := stream.Send(a.configOf(s)); err != nil {
			return err
		}
		select {
		case err := <-received:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.wake:
		}
	}
}

func (a *agents) configOf(s *agentState) *agentv1.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	config := &agentv1.Config{Generation: a.generation, Tailed: slices.DeleteFunc(a.tailed(s.pod), func(p uint32) bool { return !slices.Contains(s.serves, p) })}
	tokens := map[string][]byte{}
	for uid, d := range a.inForce {
		if !d.pods[s.pod] || !slices.Contains(s.serves, uint32(d.port)) {
			continue
		}
		token := s.tokens[uid]
		if token == nil {
			token = make([]byte, 32)
			_, _ = rand.Read(token) // never fails, see crypto/rand
		}
		tokens[uid] = token
		config.Intercepts = append(config.Intercepts, &agentv1.Intercept{
			Uid: uid, Port: uint32(d.port), Token: token, RelayAddress: net.JoinHostPort(a.options.PodIP, fmt.Sprint(wellknown.RelayPort)), Match: d.match, ErrorOnFailure: d.errors, Wiretap: d.wiretap, LocalPlaintext: d.plaintext, Datagrams: d.datagrams,
		})
	}
	s.tokens = tokens
	return config
}

// authenticate finds out which pod speaks, by the token of its agent. An agent that was attached may have no other token than the
// pod's for the API server.
func (a *agents) authenticate(ctx context.Context) (podUID string, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ") {
		return "", status.Error(codes.Unauthenticated, "no token")
	}
	token := strings.TrimPrefix(values[0], "Bearer ")
	uid, _, err := a.podOf(ctx, token, agentconfig.Audience)
	if err == nil || len(md.Get(agentconfig.AttachedHeader)) == 0 {
		return uid, err
	}
	uid, key, err := a.podOf(ctx, token)
	if err != nil {
		return "", err
	}
	var pod corev1.Pod
	if err := a.reader.Get(ctx, key, &pod); err != nil || string(pod.UID) != uid || !inject.IsAttached(&pod) {
		return "", status.Error(codes.Unauthenticated, "the token is that of a pod to which no agent is attached")
	}
	return uid, nil
}

// podOf is the pod whose token this is, for one of the audiences, or for the API server's own.
func (a *agents) podOf(ctx context.Context, token string, audiences ...string) (uid string, key client.ObjectKey, err error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}
	if err := a.reviewer.Create(ctx, review); err != nil {
		a.options.Log.Warn("the token of an agent could not be reviewed", "err", err)
		return "", key, status.Error(codes.Unavailable, "the token could not be reviewed")
	}
	user := review.Status.User
	uids, names := user.Extra["authentication.kubernetes.io/pod-uid"], user.Extra["authentication.kubernetes.io/pod-name"]
	account := strings.Split(user.Username, ":") // system:serviceaccount:NAMESPACE:NAME
	if !review.Status.Authenticated || len(uids) != 1 || len(names) != 1 || len(account) != 4 {
		return "", key, status.Error(codes.Unauthenticated, "the token is not that of a pod")
	}
	return uids[0], client.ObjectKey{Namespace: account[2], Name: names[0]}, nil
}
