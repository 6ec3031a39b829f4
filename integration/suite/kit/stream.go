package kit

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
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

// OpenStream opens a stream with a developer's mark. next waits for the stream's next message and
// returns the edition that sent it.
type OpenStream func(ctx context.Context, mark string) (next func() (edition string, err error), err error)

// StreamKinds returns every kind of stream that the subject has. All gRPC calls share one
// connection.
func StreamKinds(t *testing.T) map[string]OpenStream {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///subject.shop:80",
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	calls := testpb.NewTestServiceClient(conn)
	plain := func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	//nolint:staticcheck // the client of net/http does not send :protocol
	two := &http.Client{Transport: &http2.Transport{AllowHTTP: true, DialTLSContext: plain}}
	t.Cleanup(two.CloseIdleConnections)
	all := map[string]OpenStream{
		"WebSocket":             openWebSocket,
		"WebSocket over HTTP/2": openWebSocket2(two),
		"gRPC both ways":        openDuplexCall(calls),
		"gRPC from the server":  openServerCall(calls),
	}
	for version, client := range Clients(t) {
		client.Timeout = 0
		all["server-sent events, "+version] = openEvents(client)
	}
	return all
}

func openWebSocket(ctx context.Context, mark string) (func() (string, error), error) {
	options := &websocket.DialOptions{HTTPHeader: http.Header{"X-Dev": {mark}}}
	c, _, err := websocket.Dial(ctx, "ws://subject.shop/socket", options) //nolint:bodyclose // the library closes it
	if err != nil {
		return nil, err
	}
	return func() (string, error) {
		if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
			return "", err
		}
		_, message, err := c.Read(ctx)
		return strings.TrimSuffix(string(message), " hello"), err
	}, nil
}

// openWebSocket2 opens WebSockets over HTTP/2, RFC 8441.
func openWebSocket2(client *http.Client) OpenStream {
	return func(ctx context.Context, mark string) (func() (string, error), error) {
		in, out := io.Pipe()
		r, err := http.NewRequestWithContext(ctx, http.MethodConnect, "http://subject.shop/socket", in)
		if err != nil {
			return nil, err
		}
		r.Header[":protocol"] = []string{"websocket"}
		r.Header.Set("x-dev", mark)
		response, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = response.Body.Close() })
		lines := bufio.NewReader(response.Body)
		return func() (string, error) {
			if _, err := io.WriteString(out, "hello\n"); err != nil {
				return "", err
			}
			message, err := lines.ReadString('\n')
			return strings.TrimSuffix(message, " hello\n"), err
		}, nil
	}
}

func marked(ctx context.Context, mark string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-dev", mark)
}

func openDuplexCall(calls testpb.TestServiceClient) OpenStream {
	return func(ctx context.Context, mark string) (func() (string, error), error) {
		stream, err := calls.FullDuplexCall(marked(ctx, mark))
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
	}
}

func openServerCall(calls testpb.TestServiceClient) OpenStream {
	return func(ctx context.Context, mark string) (func() (string, error), error) {
		stream, err := calls.StreamingOutputCall(marked(ctx, mark), &testpb.StreamingOutputCallRequest{})
		if err != nil {
			return nil, err
		}
		return func() (string, error) {
			m, err := stream.Recv()
			return string(m.GetPayload().GetBody()), err
		}, nil
	}
}

func openEvents(client *http.Client) OpenStream {
	return func(ctx context.Context, mark string) (func() (string, error), error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://subject.shop/events", nil)
		if err != nil {
			return nil, err
		}
		r.Header.Set("x-dev", mark)
		response, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = response.Body.Close() })
		lines := bufio.NewScanner(response.Body)
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

// Streams is a set of streams that must go on, each at the edition at which it started.
type Streams struct {
	// Messages counts the messages of all streams.
	Messages atomic.Int64
	// Ended counts the streams that ended and were opened again.
	Ended atomic.Int64

	t  *testing.T
	mu sync.Mutex
	// mu guards the field below.
	wrong []string
}

// NewStreams returns an empty set.
func NewStreams(t *testing.T) *Streams { return &Streams{t: t} }

// Wrong returns what went wrong.
func (s *Streams) Wrong() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wrong
}

func (s *Streams) report(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, time.Now().Format("15:04:05.000: ")+fmt.Sprintf(format, args...))
}

// Open opens one stream of each kind. One edition must send all messages, from the first one until
// closeAll is called.
func (s *Streams) Open(kinds map[string]OpenStream, mark, edition string) (closeAll func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	var running sync.WaitGroup
	for kind, open := range kinds {
		next, err := open(ctx, mark)
		require.NoError(s.t, err, "%s of %s", kind, mark)
		first, err := next()
		require.NoError(s.t, err, "%s of %s", kind, mark)
		require.Equal(s.t, edition, first, "%s of %s", kind, mark)
		running.Go(func() {
			for ctx.Err() == nil {
				got, err := next()
				if ctx.Err() != nil {
					return
				}
				if err != nil || got != edition {
					s.report("%s of %q, which started at %s: %q %v", kind, mark, edition, got, err)
					return
				}
				s.Messages.Add(1)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() { cancel(); running.Wait() }
}

// Reopen keeps one stream of each kind until closeAll is called. It opens a stream again when it
// ends, as streams do with the pod that they go through. Each must open, and the edition of the
// mark must send all of its messages.
func (s *Streams) Reopen(kinds map[string]OpenStream, mark, edition string) (closeAll func()) {
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	var running sync.WaitGroup
	for kind, open := range kinds {
		running.Go(func() {
			for ctx.Err() == nil {
				s.followOne(ctx, kind, open, mark, edition)
			}
		})
	}
	return func() { cancel(); running.Wait() }
}

// followOne reads a stream from its first message to its end.
func (s *Streams) followOne(ctx context.Context, kind string, open OpenStream, mark, edition string) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	got := ""
	next, err := open(inner, mark)
	for messages := 0; err == nil; messages++ {
		if got, err = next(); err != nil && messages > 0 {
			s.Ended.Add(1)
			return
		}
		if got != edition {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if ctx.Err() == nil {
		s.report("%s of %q: %q %v", kind, mark, got, err)
	}
}
