package kit

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// ResponseLimit is how long a request may wait for its response on a machine that has much else to
// do.
const ResponseLimit = 2 * time.Second

// Requester sends requests of one kind.
type Requester struct {
	Kind string
	// Send sends a request with a developer's mark and returns the edition that answers.
	Send func(ctx context.Context, mark string) (edition string, err error)
	// Close closes the connections that it keeps.
	Close func()
}

// Edition sends one request with alice's mark and returns the edition that answers.
func (r Requester) Edition() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestLimit)
	defer cancel()
	return r.Send(ctx, "alice")
}

// AnsweredBy reports whether an edition answers the requests of alice now.
func (r Requester) AnsweredBy(edition string) bool {
	got, err := r.Edition()
	return err == nil && got == edition
}

// Observation is what a Monitor sees of one request.
type Observation struct {
	Sent    time.Time
	Took    time.Duration
	Kind    string
	Mark    string // the mark of the request
	Edition string // the edition that answered, or the text of the error
	Failed  bool
}

// Monitor sends requests with developers' marks, and without, until Stop is called, and records who
// answers when.
type Monitor struct {
	cancel  context.CancelFunc
	done    sync.WaitGroup
	senders int

	mu sync.Mutex
	// mu guards the field below.
	all []Observation
}

// StartMonitor sends requests with each mark from four requesters, which are numbered from 0.
func StartMonitor(t *testing.T, requesters func(i int) Requester, marks ...string) *Monitor {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	m := &Monitor{cancel: cancel}
	for _, mark := range marks {
		for i := range 4 {
			one := requesters(i)
			m.senders++
			m.done.Go(func() {
				defer one.Close()
				for ctx.Err() == nil {
					m.observe(one, mark)
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
	}
	return m
}

func (m *Monitor) observe(r Requester, mark string) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestLimit)
	defer cancel()
	o := Observation{Sent: time.Now(), Kind: r.Kind, Mark: mark}
	edition, err := r.Send(ctx, mark)
	o.Took, o.Edition, o.Failed = time.Since(o.Sent), edition, err != nil
	if err != nil {
		o.Edition = err.Error()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, o)
}

// Busy reports whether all requesters have been at work for a while.
func (m *Monitor) Busy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.all) > 20*m.senders
}

// Cancel stops the monitor without waiting for it.
func (m *Monitor) Cancel() { m.cancel() }

// Stop stops the monitor and returns its observations.
func (m *Monitor) Stop() []Observation {
	m.cancel()
	m.done.Wait()
	return m.all
}

// RequireFailOpen stops the monitor and requires that the cluster took over from alice's laptop.
// Requests without a mark never fail. Those of alice fail only if they were sent before the fault;
// the laptop or the cluster answers them, and from recovery after the fault on only the cluster
// does, without waiting for the laptop.
func (m *Monitor) RequireFailOpen(t *testing.T, fault time.Time, recovery time.Duration) {
	t.Helper()
	var wrong []string
	sent := map[string]int{}
	var longest time.Duration
	for _, o := range m.Stop() {
		late := o.Sent.Sub(fault)
		if late > 0 {
			sent[o.Kind]++
			longest = max(longest, o.Took)
		}
		if problem := o.problem(late, recovery); problem != "" {
			wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault: %s", o.Kind, o.Mark, late, problem))
		}
	}
	t.Logf("sent after the fault: %v, the longest took %s", sent, longest.Round(time.Millisecond))
	require.Empty(t, wrong, "of %d requests", len(m.all))
	require.NotEmpty(t, sent)
}

// problem returns what is wrong with a request that was sent late after the fault, or an empty
// text.
func (o Observation) problem(late, recovery time.Duration) string {
	switch {
	case o.Mark == "" && o.Edition == "cluster":
	case o.Mark == "" || (o.Failed && late > 0):
		return fmt.Sprintf("took %s: %s", o.Took, o.Edition)
	case !o.Failed && late > recovery && o.Edition != "cluster":
		return "still " + o.Edition
	case late > 0 && o.Took > max(recovery-late, 0)+ResponseLimit:
		return fmt.Sprintf("waited for %s", o.Took)
	}
	return ""
}

// MonitorCatalog monitors the catalog through transports, which are numbered from 0.
func MonitorCatalog(t *testing.T, transport func(int) *http.Transport, marks ...string) *Monitor {
	t.Helper()
	return StartMonitor(t, func(i int) Requester {
		client := &http.Client{Transport: transport(i)}
		send := func(_ context.Context, mark string) (string, error) { return AskCatalog(client, mark) }
		return Requester{Kind: "GET", Send: send, Close: client.CloseIdleConnections}
	}, marks...)
}

// DialContext opens a connection.
type DialContext func(ctx context.Context, network, address string) (net.Conn, error)

// SubjectRequesters returns requesters for a service of the subject. Each keeps its connection and
// sends requests of another kind: some that a client may repeat, and some that it must not.
func SubjectRequesters(t *testing.T, service string) func(i int) Requester {
	return SubjectRequestersOver(t, service, new(net.Dialer).DialContext)
}

// SubjectRequestersOver is SubjectRequesters over connections that dial opens.
func SubjectRequestersOver(t *testing.T, service string, dial DialContext) func(i int) Requester {
	return func(i int) Requester {
		if i%4 == 3 {
			conn, err := grpc.NewClient("passthrough:///"+service+".shop:80",
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
					return dial(ctx, "tcp", address)
				}))
			require.NoError(t, err)
			send := unaryCall(testpb.NewTestServiceClient(conn))
			return Requester{Kind: service + " gRPC", Send: send, Close: func() { _ = conn.Close() }}
		}
		protocols := new(http.Protocols)
		protocols.SetHTTP1(i%4 != 2)
		protocols.SetUnencryptedHTTP2(i%4 == 2)
		transport := &http.Transport{MaxIdleConnsPerHost: 1, Protocols: protocols, DialContext: dial}
		if i%4 == 0 {
			return httpRequester(transport, service, http.MethodGet, 0)
		}
		return httpRequester(transport, service, http.MethodPost, 1000)
	}
}

// httpRequester requests a service of the subject with a body of size bytes.
func httpRequester(transport *http.Transport, service, method string, size int) Requester {
	client := &http.Client{Transport: transport}
	send := func(ctx context.Context, mark string) (string, error) {
		ctx, progress := Trace(ctx)
		body := strings.NewReader(strings.Repeat("x", size))
		r, err := http.NewRequestWithContext(ctx, method, "http://"+service+".shop/", body)
		if err != nil {
			return "", err
		}
		r.Header.Set("x-dev", mark)
		response, err := client.Do(r)
		if err != nil {
			return "", fmt.Errorf("%w (reached %s)", err, progress())
		}
		defer response.Body.Close()
		page, err := io.ReadAll(response.Body)
		if err != nil {
			return "", err
		}
		edition, what, _ := strings.Cut(string(page), " ")
		if !strings.HasSuffix(what, fmt.Sprintf(" %s / %d\n", method, size)) {
			return "", fmt.Errorf("%s: %q", response.Status, page)
		}
		return edition, nil
	}
	kind := fmt.Sprint(service, " ", transport.Protocols, " ", method)
	return Requester{Kind: kind, Send: send, Close: client.CloseIdleConnections}
}

// WebRequesters returns requesters for the service web, which speaks TLS.
func WebRequesters(t *testing.T, roots *x509.CertPool) func(i int) Requester {
	return func(i int) Requester {
		version := []string{"HTTP/1.1", "HTTP/2.0"}[i%2]
		client := TLSClients(t, roots)[version]
		send := func(_ context.Context, mark string) (string, error) {
			page, err := AskWeb(client, mark)
			if err != nil {
				return "", err
			}
			var web struct{ Edition, Body string }
			if err := json.Unmarshal([]byte(page), &web); err != nil || web.Body != "body" {
				return "", fmt.Errorf("the page is %q: %w", page, err)
			}
			return web.Edition, nil
		}
		return Requester{Kind: "web " + version, Send: send, Close: client.CloseIdleConnections}
	}
}

// NodeTransports makes transports of a client that reaches a service by a plain route to a node.
// Half of them keep their connections.
func NodeTransports(t *testing.T, service string) func(int) *http.Transport {
	t.Helper()
	dial := NodeDialer(t, service)
	return func(i int) *http.Transport {
		return &http.Transport{MaxIdleConnsPerHost: 1, DisableKeepAlives: i%2 == 0, DialContext: dial}
	}
}

// NodeDialer dials a service, whatever the address says, from a machine that has a route to a node.
func NodeDialer(t *testing.T, service string) DialContext {
	t.Helper()
	l := NewLaptop(t)
	address := ClusterIP(t, "shop", service)
	const internal = `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`
	nodes := strings.Fields(Kubectl(t, "get", "nodes", "-o", internal))
	require.NotEmpty(t, nodes)
	l.Exec("ip", "route", "add", address, "via", nodes[0])
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return l.DialContext(ctx, network, net.JoinHostPort(address, "80"))
	}
}
