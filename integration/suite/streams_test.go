package suite

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// opener opens a stream with a developer's mark and returns a function that waits for its next message and says who sent it.
type opener func(ctx context.Context, who string) (func() (string, error), error)

// openers are the ways to hold on to a service. All calls of gRPC share one connection.
func openers(t *testing.T) map[string]opener {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///subject.shop:80", grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	calls := testpb.NewTestServiceClient(conn)
	plain := func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	two := &http.Client{Transport: &http2.Transport{AllowHTTP: true, DialTLSContext: plain}} //nolint:staticcheck // net/http's takes no :protocol
	t.Cleanup(two.CloseIdleConnections)
	marked := func(ctx context.Context, who string) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "x-dev", who)
	}
	all := map[string]opener{
		"WebSocket": func(ctx context.Context, who string) (func() (string, error), error) {
			c, _, err := websocket.Dial(ctx, "ws://subject.shop/socket", &websocket.DialOptions{HTTPHeader: http.Header{"X-Dev": {who}}}) //nolint:bodyclose // the library says that nobody has to
			if err != nil {
				return nil, err
			}
			return func() (string, error) {
				if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
					return "", err
				}
				_, said, err := c.Read(ctx)
				return strings.TrimSuffix(string(said), " hello"), err
			}, nil
		},
		"WebSocket over HTTP/2": func(ctx context.Context, who string) (func() (string, error), error) {
			in, out := io.Pipe()
			r, err := http.NewRequestWithContext(ctx, http.MethodConnect, "http://subject.shop/socket", in)
			if err != nil {
				return nil, err
			}
			r.Header[":protocol"] = []string{"websocket"} // RFC 8441
			r.Header.Set("x-dev", who)
			answer, err := two.Do(r)
			if err != nil {
				return nil, err
			}
			context.AfterFunc(ctx, func() { _ = answer.Body.Close() })
			lines := bufio.NewReader(answer.Body)
			return func() (string, error) {
				if _, err := io.WriteString(out, "hello\n"); err != nil {
					return "", err
				}
				said, err := lines.ReadString('\n')
				return strings.TrimSuffix(said, " hello\n"), err
			}, nil
		},
		"gRPC both ways": func(ctx context.Context, who string) (func() (string, error), error) {
			stream, err := calls.FullDuplexCall(marked(ctx, who))
			if err != nil {
				return nil, err
			}
			return func() (string, error) {
				if err := stream.Send(&testpb.StreamingOutputCallRequest{}); err != nil {
					return "", err
				}
				m, err := stream.Recv()
				return string(m.GetPayload().GetBody()), err
			}, nil
		},
		"gRPC from the server": func(ctx context.Context, who string) (func() (string, error), error) {
			stream, err := calls.StreamingOutputCall(marked(ctx, who), &testpb.StreamingOutputCallRequest{})
			if err != nil {
				return nil, err
			}
			return func() (string, error) {
				m, err := stream.Recv()
				return string(m.GetPayload().GetBody()), err
			}, nil
		},
	}
	for version, client := range clientsOf(t) {
		client.Timeout = 0
		all["server-sent events, "+version] = func(ctx context.Context, who string) (func() (string, error), error) {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://subject.shop/events", nil)
			if err != nil {
				return nil, err
			}
			r.Header.Set("x-dev", who)
			answer, err := client.Do(r)
			if err != nil {
				return nil, err
			}
			context.AfterFunc(ctx, func() { _ = answer.Body.Close() })
			lines := bufio.NewScanner(answer.Body)
			return func() (string, error) {
				for lines.Scan() {
					if name, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
						return name, nil
					}
				}
				return "", fmt.Errorf("the events ended: %w", lines.Err())
			}, nil
		}
	}
	return all
}

// held is a set of streams that must go on, each with whom it began.
type held struct {
	t     *testing.T
	said  atomic.Int64
	ended atomic.Int64 // of those that may end
	mu    sync.Mutex
	bad   []string
}

// open opens one stream of each kind. Who answers must be want, from the first message until close.
func (h *held) open(kinds map[string]opener, who, want string) (closeAll func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	var running sync.WaitGroup
	for kind, open := range kinds {
		next, err := open(ctx, who)
		require.NoError(h.t, err, "%s of %s", kind, who)
		first, err := next()
		require.NoError(h.t, err, "%s of %s", kind, who)
		require.Equal(h.t, want, first, "%s of %s", kind, who)
		running.Go(func() {
			for ctx.Err() == nil {
				name, err := next()
				if ctx.Err() != nil {
					return
				}
				if err != nil || name != want {
					h.mu.Lock()
					h.bad = append(h.bad, fmt.Sprintf("%s: %s of %q, which began at %s: %q %v", time.Now().Format("15:04:05.000"), kind, who, want, name, err))
					h.mu.Unlock()
					return
				}
				h.said.Add(1)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() { cancel(); running.Wait() }
}

// reopen has one stream of each kind until close, and opens it again when it ends, as streams do with the pod that they go through. Each must
// open, and all of it come from where its mark says.
func (h *held) reopen(kinds map[string]opener, who, want string) (closeAll func()) {
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	var running sync.WaitGroup
	for kind, open := range kinds {
		one := func() { // from its first message to its end
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			name := ""
			next, err := open(ctx, who)
			for said := 0; err == nil; said++ {
				if name, err = next(); err != nil && said > 0 {
					h.ended.Add(1)
					return
				}
				if name != want {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if ctx.Err() == nil {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.bad = append(h.bad, fmt.Sprintf("%s: %s of %q: %q %v", time.Now().Format("15:04:05.000"), kind, who, name, err))
			}
		}
		running.Go(func() {
			for ctx.Err() == nil {
				one()
			}
		})
	}
	return func() { cancel(); running.Wait() }
}

// Three developers and everybody else share a service of three pods on two nodes: under load every single answer comes from where its
// mark says, and streams of every kind stay whole and where they began, while intercepts come and go. DETOUR_LOAD makes it longer than there
// is time for in each run.
func TestTogether(t *testing.T) {
	// Slow enough for a busy machine: a laptop that does not accept a connection within two seconds is gone, rightly.
	duration, pause := 15*time.Second, 100*time.Millisecond
	if text := os.Getenv("DETOUR_LOAD"); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		require.NoError(t, err)
		pause = 20 * time.Millisecond
	}
	withSubject(t)
	alice, bob, carol := newIdleDeveloper(t, 0), newIdleDeveloper(t, 1), newIdleDeveloper(t, 2)
	alice.subject("alice")
	bob.subject("bob")
	copies := carol.count(18080)
	connected(t)
	alice.detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	pods := kubectl(t, "-n", "shop", "get", "pods", "-l", "app=subject", "--field-selector", "status.phase=Running", "-o", "jsonpath={.items[*].spec.nodeName}")
	nodes := strings.Fields(pods)
	slices.Sort(nodes)
	require.Len(t, slices.Compact(nodes), len(strings.Fields(kubectl(t, "get", "nodes", "-o", "name"))), "the pods are on %s", pods)

	h := &held{t: t}
	kinds := openers(t)
	load := newMixture(t, 64, pause)
	closers := []func(){h.open(kinds, "alice", "alice"), h.open(kinds, "bob", "cluster"), h.open(kinds, "", "cluster")}
	rounds := 0
	for start := time.Now(); rounds < 2 || time.Since(start) < duration; rounds++ {
		load.bobs("")
		bob.detour("intercept", "subject", "--port", "18080", "--header", "x-dev=bob", "-n", "shop")
		load.bobs("bob")
		ofBob := h.open(kinds, "bob", "bob")
		copied := copies.Load()
		carol.detour("intercept", "subject", "--port", "18080", "--mode", "wiretap", "-n", "shop")
		ofOthers := []func(){h.open(kinds, "alice", "alice"), h.open(kinds, "", "cluster")}
		require.Eventually(t, func() bool { return copies.Load() > copied }, patience, 50*time.Millisecond)
		carol.detour("leave", "subject")
		ofBob() // what is under way on a laptop ends with its intercept
		load.bobs("")
		if rounds%2 == 0 {
			bob.detour("leave", "subject")
		} else { // what his laptop has been asked it still answers
			bob.detour("quit")
			bob.detour("connect", "-n", "shop")
		}
		load.bobs("cluster")
		ofOthers = append(ofOthers, h.open(kinds, "bob", "cluster"))
		for _, end := range ofOthers {
			end()
		}
	}
	before := h.said.Load()
	require.Eventually(t, func() bool { return h.said.Load() > before+100 }, patience, 50*time.Millisecond, "all go on")
	asked, wrong := load.ended()
	for _, end := range closers {
		end()
	}
	require.Empty(t, wrong, "of %d requests", asked)
	require.Empty(t, h.bad)
	t.Logf("%d requests, %d copies, %d messages of streams, bob and carol came and went %d times", asked, copies.Load(), h.said.Load(), rounds)

	t.Run("gRPC from the client", func(t *testing.T) {
		conn, err := grpc.NewClient("passthrough:///subject.shop:80", grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		defer conn.Close()
		for who, by := range map[string]string{"alice": "alice", "bob": "cluster"} {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-dev", who), 20*time.Second)
			defer cancel()
			stream, err := testpb.NewTestServiceClient(conn).StreamingInputCall(ctx)
			require.NoError(t, err)
			for range 10 {
				require.NoError(t, stream.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: []byte("x")}}))
			}
			m, err := stream.CloseAndRecv()
			require.NoError(t, err)
			require.Equal(t, int32(10*1000+len(by)), m.AggregatedPayloadSize)
		}
	})
}
