package credential

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd/api"
)

func TestRequestEndsWithItsContextWhileItsPluginHangs(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	t.Cleanup(func() { // the plugin reads until there is a writer
		if w, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			_ = w.Close()
		}
	})
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	config := &rest.Config{Host: server.URL, ExecProvider: &api.ExecConfig{
		APIVersion: "client.authentication.k8s.io/v1", Command: "cat", Args: []string{pipe},
		InteractiveMode: api.NeverExecInteractiveMode,
	}}
	transport, err := rest.TransportFor(config)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { // the test waits for it, or fails
		_, err := EndWithContext(transport).RoundTrip(request) //nolint:bodyclose // there is none
		ended <- err
	}()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.DeadlineExceeded)
	case <-time.After(10 * time.Second):
		t.Fatal("the request waits for the plugin")
	}
}

func TestEndWithContextPassesResultsOn(t *testing.T) {
	server := teapot(t)
	response, err := (&http.Client{Transport: EndWithContext(http.DefaultTransport)}).Get(server.URL)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusTeapot, response.StatusCode)
	server.Close()
	_, err = (&http.Client{Transport: EndWithContext(http.DefaultTransport)}).Get(server.URL)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// Retries while a plugin hangs must not accumulate goroutines.
func TestEndWithContextBoundsPendingRequests(t *testing.T) {
	blocked := &blocking{free: make(chan struct{})}
	t.Cleanup(func() { close(blocked.free) })
	transport := EndWithContext(blocked)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://nowhere", nil)
	require.NoError(t, err)
	for range 10 * maxPending {
		_, err := transport.RoundTrip(request) //nolint:bodyclose // there is none
		require.ErrorIs(t, err, context.Canceled)
	}
	require.LessOrEqual(t, blocked.calls.Load(), int64(maxPending))
}

// An API server behind `kubectl proxy` needs neither TLS nor credentials.
func TestHTTPClientLeavesTheDefaultClientAlone(t *testing.T) {
	server := teapot(t)
	client, err := HTTPClient(&rest.Config{Host: server.URL})
	require.NoError(t, err)
	require.Nil(t, http.DefaultClient.Transport)
	response, err := client.Get(server.URL)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusTeapot, response.StatusCode)
}

type blocking struct {
	calls atomic.Int64
	free  chan struct{}
}

func (b *blocking) RoundTrip(*http.Request) (*http.Response, error) {
	b.calls.Add(1)
	<-b.free
	return nil, context.Canceled
}

// teapot is a server whose answer is recognized.
func teapot(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(server.Close)
	return server
}
