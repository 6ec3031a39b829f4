package credential

import "net/http"

// End gives requests an end with their contexts also while a credential plugin runs for them, which client-go waits for: one that hangs, or asks
// a person who is not there, must not hold up whoever gave the request up. The plugin is left to itself.
func End(next http.RoundTripper) http.RoundTripper {
	return &ending{next: next, asked: make(chan struct{}, maxAsked)}
}

// maxAsked is how many requests may wait for their answers at once, those that were given up included: whoever tries again and again while a plugin
// hangs must not gather goroutines.
const maxAsked = 64

type ending struct {
	next  http.RoundTripper
	asked chan struct{} // one for each
}

// RoundTrip implements http.RoundTripper.
func (e *ending) RoundTrip(request *http.Request) (*http.Response, error) {
	type result struct {
		response *http.Response
		err      error
	}
	select {
	case e.asked <- struct{}{}:
	case <-request.Context().Done():
		return nil, request.Context().Err()
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-e.asked }()
		response, err := e.next.RoundTrip(request) //nolint:bodyclose // closed below, or by who asked
		done <- result{response, err}
	}()
	select {
	case r := <-done:
		return r.response, r.err
	case <-request.Context().Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.response.Body.Close()
			}
		}()
		return nil, request.Context().Err()
	}
}

// WrappedRoundTripper implements k8s.io/apimachinery/pkg/util/net.RoundTripperWrapper.
func (e *ending) WrappedRoundTripper() http.RoundTripper { return e.next }
