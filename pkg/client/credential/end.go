package credential

import (
	"fmt"
	"net/http"

	"k8s.io/client-go/rest"
)

// HTTPClient returns a client for the API server whose requests end with their contexts: see
// EndWithContext. It belongs to the caller, unlike that of rest.HTTPClientFor, which is
// http.DefaultClient if config needs neither TLS nor a timeout.
func HTTPClient(config *rest.Config) (*http.Client, error) {
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("make the transport to the API server: %w", err)
	}
	return &http.Client{Transport: EndWithContext(transport), Timeout: config.Timeout}, nil
}

// EndWithContext wraps a round tripper so that a request ends with its context even while a
// credential plugin runs for it. client-go waits for the plugin: one that hangs, or that prompts an
// absent person, must not block a caller that has given up. The plugin itself keeps running.
func EndWithContext(next http.RoundTripper) http.RoundTripper {
	return &contextEnder{next: next, slots: make(chan struct{}, maxPending)}
}

// maxPending is how many requests may be under way at once, including those whose callers have
// given up: retries while a plugin hangs must not accumulate goroutines.
const maxPending = 64

type contextEnder struct {
	next  http.RoundTripper
	slots chan struct{} // has an element for each request under way
}

// RoundTrip implements http.RoundTripper.
func (e *contextEnder) RoundTrip(request *http.Request) (*http.Response, error) {
	type result struct {
		response *http.Response
		err      error
	}
	select {
	case e.slots <- struct{}{}:
	case <-request.Context().Done():
		return nil, request.Context().Err()
	}
	done := make(chan result, 1)
	// Nobody waits for it after the context has ended: it ends with the plugin. maxPending bounds
	// such goroutines.
	go func() {
		defer func() { <-e.slots }()
		response, err := e.next.RoundTrip(request) //nolint:bodyclose // closed below, or by the caller
		done <- result{response, err}
	}()
	select {
	case r := <-done:
		return r.response, r.err
	case <-request.Context().Done():
		go func() { // ends with the goroutine above
			if r := <-done; r.err == nil {
				_ = r.response.Body.Close()
			}
		}()
		return nil, request.Context().Err()
	}
}

// WrappedRoundTripper implements k8s.io/apimachinery/pkg/util/net.RoundTripperWrapper.
func (e *contextEnder) WrappedRoundTripper() http.RoundTripper { return e.next }
