package kit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FrontendURL is the page of the shop's frontend, which shows the catalog.
const FrontendURL = "http://frontend.shop/"

// RequestLimit is how long one request may take.
const RequestLimit = 10 * time.Second

// Trace records how far a request gets, for the message of its failure.
func Trace(ctx context.Context) (_ context.Context, progress func() string) {
	var mu sync.Mutex
	start, text := time.Now(), "nothing"
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		text += fmt.Sprintf(", after %s ", time.Since(start).Round(time.Millisecond)) + fmt.Sprintf(format, args...)
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSDone:      func(i httptrace.DNSDoneInfo) { note("the name: %v", i.Addrs) },
		ConnectStart: func(_, to string) { note("the dial of %s", to) },
		GotConn: func(i httptrace.GotConnInfo) {
			note("a connection from %s, reused: %t", i.Conn.LocalAddr(), i.Reused)
		},
		WroteRequest:         func(httptrace.WroteRequestInfo) { note("the request written") },
		GotFirstResponseByte: func() { note("a response") },
	}), func() string { mu.Lock(); defer mu.Unlock(); return text }
}

// Get returns a page's text; any status but 200 is an error.
func Get(c *http.Client, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestLimit)
	defer cancel()
	ctx, progress := Trace(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", fmt.Errorf("%w (reached %s)", err, progress())
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, b.String())
	}
	return b.String(), nil
}

// NewConnections returns a client that opens a connection for each request.
func NewConnections() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

// ClusterPage is the frontend's page, fetched through the API server and not through a tunnel.
func ClusterPage() string {
	out, _ := Run("kubectl", "get", "--raw", "/api/v1/namespaces/shop/services/frontend:http/proxy/")
	return out
}

// ClusterEdition is the edition of the catalog that answers the frontend, asked through the API
// server.
func ClusterEdition() string { return EditionOf(ClusterPage()) }

// Edition returns which edition of a service answers: "laptop" or "cluster".
func Edition(t *testing.T, url string) string {
	t.Helper()
	page, err := Get(NewConnections(), url)
	require.NoError(t, err)
	return EditionOf(page)
}

// EditionOf returns which edition of a service a page is from: "laptop" or "cluster", or else the
// page itself.
func EditionOf(page string) string {
	if strings.Contains(page, `"edition":"laptop"`) {
		return "laptop"
	}
	if strings.Contains(page, `"edition":"cluster"`) {
		return "cluster"
	}
	return page
}

// WaitForEndpoints waits until the nodes know a service's current pods. Kubernetes tells the nodes
// later than the traffic-manager and the laptop. Ten new connections in a row must be answered, by
// any pod.
func WaitForEndpoints(t *testing.T, url string) {
	t.Helper()
	client := NewConnections()
	Eventually(t, func() bool {
		for range 10 {
			if _, err := Get(client, url); err != nil {
				return false
			}
		}
		return true
	}, "the nodes know the pods of %s", url)
}

// AnsweredBy returns a condition: a service of the shop is answered by an edition. The nodes may
// know it a moment later.
func AnsweredBy(service, edition string) func() bool {
	return func() bool {
		page, err := Get(NewConnections(), "http://"+service+".shop/")
		return err == nil && EditionOf(page) == edition
	}
}

// RequireAnsweredBy requires that one edition answers every one of some requests.
func RequireAnsweredBy(t *testing.T, service, edition string) {
	t.Helper()
	for range 20 {
		require.Equal(t, edition, Edition(t, "http://"+service+".shop/"), service)
	}
}

// Load requests url again and again until stop is called. stop returns the number of requests and
// the failures.
func Load(t *testing.T, url string, keepAlive bool) (stop func() (int, []error)) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keepAlive}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var all sync.WaitGroup
	var count atomic.Int64
	var mu sync.Mutex
	var failures []error
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				if _, err := Get(client, url); err != nil {
					mu.Lock()
					failures = append(failures, fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
					mu.Unlock()
				}
				count.Add(1)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	return func() (int, []error) { cancel(); all.Wait(); return int(count.Load()), failures }
}

// AskCatalog requests the catalog with a developer's mark in the header x-dev, and returns the
// edition that answers.
func AskCatalog(client *http.Client, mark string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestLimit)
	defer cancel()
	ctx, progress := Trace(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://catalog.shop/", nil)
	if err != nil {
		return "", err
	}
	if mark != "" {
		r.Header.Set("x-dev", mark)
	}
	response, err := client.Do(r)
	if err != nil {
		return "", fmt.Errorf("%w (reached %s)", err, progress())
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(page), `"edition":"`)
	edition, _, _ := strings.Cut(rest, `"`)
	if edition == "" {
		return "", fmt.Errorf("%s: %s", response.Status, page)
	}
	return edition, nil
}

// Clients returns clients of both versions of HTTP that keep their connections.
func Clients(t *testing.T) map[string]*http.Client {
	t.Helper()
	one, two := new(http.Protocols), new(http.Protocols)
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	all := map[string]*http.Client{}
	for version, protocols := range map[string]*http.Protocols{"HTTP/1.1": one, "HTTP/2.0": two} {
		transport := &http.Transport{Protocols: protocols, MaxIdleConnsPerHost: 1}
		t.Cleanup(transport.CloseIdleConnections)
		all[version] = &http.Client{Transport: transport, Timeout: time.Minute}
	}
	return all
}

// AskSubject sends a request to the subject, with a developer's mark unless it is empty, and
// returns status and page.
func AskSubject(t *testing.T, c *http.Client, method, path, mark string, body io.Reader) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://subject.shop"+path, body)
	require.NoError(t, err)
	if mark != "" {
		r.Header.Set("x-dev", mark)
	}
	response, err := c.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(page)
}
