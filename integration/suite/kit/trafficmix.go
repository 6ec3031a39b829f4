package kit

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

// Mixture sends requests of all kinds to the subject, with the marks of several developers and
// without, until Stop is called. The edition that the mark stands for must answer each of them.
type Mixture struct {
	// Sent counts the requests that have ended.
	Sent atomic.Int64

	marks    []string
	cancel   context.CancelFunc
	senders  sync.WaitGroup
	bob      atomic.Pointer[string] // the edition that answers bob
	closeAll []func()

	mu sync.Mutex
	// mu guards the field below.
	wrong []string
}

type send func(ctx context.Context, mark string) (edition string, err error)

// NewMixture starts with a number of connections and a pause after each response. Without marks it
// uses all: alice, bob, carol and none. Each connection has a kind: HTTP/1.1 that is kept or new
// for each request, HTTP/2, or gRPC.
func NewMixture(t *testing.T, connections int, pause time.Duration, marks ...string) *Mixture {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if len(marks) == 0 {
		marks = []string{"alice", "bob", "carol", ""}
	}
	m := &Mixture{cancel: cancel, marks: marks}
	t.Cleanup(func() { m.Stop() })
	m.BobIs("cluster")
	for i := range connections {
		one := m.http(&http.Transport{MaxIdleConnsPerHost: 1, DisableKeepAlives: i%4 == 1})
		switch i % 4 {
		case 2:
			two := new(http.Protocols)
			two.SetUnencryptedHTTP2(true)
			one = m.http(&http.Transport{Protocols: two})
		case 3:
			conn, err := grpc.NewClient("passthrough:///subject.shop:80",
				grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			m.closeAll = append(m.closeAll, func() { _ = conn.Close() })
			one = unaryCall(testpb.NewTestServiceClient(conn))
		}
		m.senders.Go(func() {
			for ctx.Err() == nil {
				m.sendOne(one)
				time.Sleep(pause)
			}
		})
	}
	return m
}

// BobIs sets the edition that answers bob from now on. An empty name stands for the time in which
// his intercept comes or goes.
func (m *Mixture) BobIs(edition string) { m.bob.Store(&edition) }

func (m *Mixture) sendOne(one send) {
	mark := m.marks[rand.N(len(m.marks))]
	ctx, cancel := context.WithTimeout(context.Background(), 2*RequestLimit)
	defer cancel()
	before := m.bob.Load()
	got, err := one(ctx, mark)
	right := got == "cluster"
	switch {
	case mark == "alice":
		right = got == "alice"
	case mark == "bob" && (*before == "" || before != m.bob.Load()):
		right = got == "bob" || got == "cluster"
	case mark == "bob":
		right = got == *before
	}
	m.Sent.Add(1)
	if err != nil || !right {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.wrong = append(m.wrong, fmt.Sprintf("%s %q: got %q %v", time.Now().Format("15:04:05.000"), mark, got, err))
	}
}

// Stop stops the requests and returns how many there were, and which of them went wrong.
func (m *Mixture) Stop() (int64, []string) {
	m.cancel()
	m.senders.Wait()
	for _, end := range m.closeAll {
		end()
	}
	m.closeAll = nil
	return m.Sent.Load(), m.wrong
}

// http sends HTTP requests with a body of any size or none. The response must belong to the
// request.
func (m *Mixture) http(transport *http.Transport) send {
	m.closeAll = append(m.closeAll, transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	return func(ctx context.Context, mark string) (string, error) {
		ctx, progress := Trace(ctx)
		methods := []string{http.MethodGet, http.MethodGet, http.MethodDelete, http.MethodPost, http.MethodPut}
		method := methods[rand.N(len(methods))]
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
		r.Header.Set("x-dev", mark)
		response, err := client.Do(r)
		if err != nil {
			return "", fmt.Errorf("%w (reached %s)", err, progress())
		}
		defer response.Body.Close()
		page, err := io.ReadAll(response.Body)
		if err != nil {
			return "", fmt.Errorf("%w (reached %s)", err, progress())
		}
		edition, rest, _ := strings.Cut(string(page), " ")
		if _, what, _ := strings.Cut(rest, " "); what != fmt.Sprintf("%s %s %d\n", method, path, size) {
			return "", fmt.Errorf("%s %s with %d bytes: %s: %q", method, path, size, response.Status, page)
		}
		return edition, nil
	}
}

func unaryCall(calls testpb.TestServiceClient) send {
	return func(ctx context.Context, mark string) (string, error) {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-dev", mark)
		response, err := calls.UnaryCall(ctx, &testpb.SimpleRequest{})
		return string(response.GetPayload().GetBody()), err
	}
}
