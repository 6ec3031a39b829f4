package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const patience = time.Minute // far above what is waited for, and below what was waited before

// nobody takes connections and says nothing, as what stands for an API server behind a network that has gone away.
func nobody(t *testing.T) (address string, asked <-chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	once := make(chan struct{})
	var mu sync.Mutex
	var open []io.Closer
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for first := true; ; first = false {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			if first {
				close(once)
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		accepting.Wait()
		for _, c := range open {
			_ = c.Close()
		}
	})
	return l.Addr().String(), once
}

// unanswered is a session with an intercept whose API server is silent.
func unanswered(t *testing.T) *session {
	t.Helper()
	address, _ := nobody(t)
	scheme := runtime.NewScheme()
	require.NoError(t, detour.AddToScheme(scheme))
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(detour.GroupVersion.WithKind("Intercept"), meta.RESTScopeNamespace)
	kube, err := client.New(&rest.Config{Host: "http://" + address}, client.Options{Scheme: scheme, Mapper: mapper})
	require.NoError(t, err)
	s := &session{log: slog.New(slog.DiscardHandler), kube: kube, namespace: "shop", intercepts: map[string]*localIntercept{}}
	for _, name := range []string{"web-a", "web-b"} {
		i := detour.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		s.intercepts[name] = &localIntercept{object: i}
	}
	return s
}

// within waits for something that would take minutes.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal(what + " waits for an API server that does not answer")
	}
}

func TestStatusOfASilentCluster(t *testing.T) {
	s := unanswered(t)
	var err error
	within(t, "status", func() { err = s.readIntercepts(context.Background()) })
	require.True(t, silent(err), "%v", err)
}

func TestEndOfASilentCluster(t *testing.T) {
	s := unanswered(t)
	back := false
	s.cleanup = append(s.cleanup, func(context.Context) { back = true })
	var err error
	within(t, "the end", func() { err = s.close(context.Background()) })
	require.True(t, silent(err), "%v", err)
	require.True(t, back, "the laptop is put back")
	require.True(t, s.isEnded())
}

// A session that is being made again keeps nobody from quitting.
func TestQuitWhileReconnecting(t *testing.T) {
	address, asked := nobody(t)
	kubeconfig := "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'http://" + address + "'}}]\nusers: [{name: a, user: {token: t}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\n"
	dir := t.TempDir()
	old := &session{log: slog.New(slog.DiscardHandler), request: &daemonv1.ConnectRequest{Kubeconfig: []byte(kubeconfig), Namespace: "shop"}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &Server{paths: ipc.Paths{Run: dir, State: dir}, log: slog.New(slog.DiscardHandler), quit: cancel}
	s.busy, s.idle = context.WithCancel(ctx)
	s.put(old)
	var reconnecting sync.WaitGroup
	reconnecting.Go(func() { s.reconnect(s.busy, old) })
	<-asked
	var r *daemonv1.QuitResponse
	within(t, "quit", func() { r, _ = s.Quit(context.Background(), &daemonv1.QuitRequest{}) })
	require.NotNil(t, r)
	reconnecting.Wait()
	require.Nil(t, s.get())
}
