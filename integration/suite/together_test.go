package suite

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// mixture asks the subject for all kinds of things with the marks of everybody until ended is called. Every answer must come from where its
// mark says.
type mixture struct {
	marks  []string
	stop   context.CancelFunc
	all    sync.WaitGroup
	asked  atomic.Int64
	ofBob  atomic.Pointer[string]
	mu     sync.Mutex
	wrong  []string
	closed []func()
}

// newMixture begins, with a pause after each answer, as those whose marks are given: alice, bob, carol or nobody; all if there are none. Each connection has a kind: HTTP/1.1 that is kept, or new for each request, HTTP/2, or gRPC.
func newMixture(t *testing.T, connections int, pause time.Duration, marks ...string) *mixture {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if len(marks) == 0 {
		marks = []string{"alice", "bob", "carol", ""}
	}
	m := &mixture{stop: cancel, marks: marks}
	t.Cleanup(func() { m.ended() })
	m.bobs("cluster")
	for i := range connections {
		ask := m.http(&http.Transport{MaxIdleConnsPerHost: 1, DisableKeepAlives: i%4 == 1})
		switch i % 4 {
		case 2:
			two := new(http.Protocols)
			two.SetUnencryptedHTTP2(true)
			ask = m.http(&http.Transport{Protocols: two})
		case 3:
			conn, err := grpc.NewClient("passthrough:///subject.shop:80", grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			m.closed = append(m.closed, func() { _ = conn.Close() })
			ask = unary(testpb.NewTestServiceClient(conn))
		}
		m.all.Go(func() {
			for ctx.Err() == nil {
				m.one(ask)
				time.Sleep(pause)
			}
		})
	}
	return m
}

// bobs says who answers bob from now on; nobody knows while his intercept comes or goes.
func (m *mixture) bobs(who string) { m.ofBob.Store(&who) }

func (m *mixture) one(ask func(ctx context.Context, who string) (string, error)) {
	who := m.marks[rand.N(len(m.marks))]
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	before := m.ofBob.Load()
	got, err := ask(ctx, who)
	right := got == "cluster"
	switch {
	case who == "alice":
		right = got == "alice"
	case who == "bob" && (*before == "" || before != m.ofBob.Load()):
		right = got == "bob" || got == "cluster"
	case who == "bob":
		right = got == *before
	}
	m.asked.Add(1)
	if err != nil || !right {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.wrong = append(m.wrong, fmt.Sprintf("%s %q: got %q %v", time.Now().Format("15:04:05.000"), who, got, err))
	}
}

// ended stops it and returns how many requests there were, and what was wrong.
func (m *mixture) ended() (int64, []string) {
	m.stop()
	m.all.Wait()
	for _, end := range m.closed {
		end()
	}
	m.closed = nil
	return m.asked.Load(), m.wrong
}

// http asks by HTTP, with a body of any size or none, and says who answered. The answer must be of what was asked.
func (m *mixture) http(transport *http.Transport) func(context.Context, string) (string, error) {
	m.closed = append(m.closed, transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	return func(ctx context.Context, who string) (string, error) {
		ctx, reached := traced(ctx)
		method := []string{http.MethodGet, http.MethodGet, http.MethodDelete, http.MethodPost, http.MethodPut}[rand.N(5)]
		path := fmt.Sprintf("/%x?n=%d", rand.Uint64(), rand.N(100))
		size := 0
		var body io.Reader
		if method == http.MethodPost || method == http.MethodPut {
			size = 1 << rand.N(18)
			body = bytes.NewReader(make([]byte, size))
		}
		r, err := http.NewRequestWithContext(ctx, method, "http://subject.shop"+path, body)
		if err != nil {
			return "", err
		}
		if method == http.MethodPut {
			r.ContentLength = -1 // in chunks
		}
		r.Header.Set("x-dev", who)
		answer, err := client.Do(r)
		if err != nil {
			return "", fmt.Errorf("%w (reached %s)", err, reached())
		}
		defer answer.Body.Close()
		page, err := io.ReadAll(answer.Body)
		if err != nil {
			return "", fmt.Errorf("%w (reached %s)", err, reached())
		}
		by, rest, _ := strings.Cut(string(page), " ")
		if _, what, _ := strings.Cut(rest, " "); what != fmt.Sprintf("%s %s %d\n", method, path, size) {
			return "", fmt.Errorf("%s %s with %d bytes: %s: %q", method, path, size, answer.Status, page)
		}
		return by, nil
	}
}

func unary(calls testpb.TestServiceClient) func(context.Context, string) (string, error) {
	return func(ctx context.Context, who string) (string, error) {
		answer, err := calls.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-dev", who), &testpb.SimpleRequest{})
		return string(answer.GetPayload().GetBody()), err
	}
}
