// Package subject is a service that does what services do, for the suites to intercept: HTTP/1 and
// HTTP/2 without TLS, bodies of any size, server-sent events, WebSockets and all four kinds of gRPC
// calls. Whatever it answers says who it is.
package subject

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// Serve serves until the listener closes. The name is what it says it is.
func Serve(l net.Listener, name string) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	calls := grpc.NewServer()
	testpb.RegisterTestServiceServer(calls, &rpc{name: name})
	web := pages(name)
	s := &http.Server{
		Protocols: protocols, ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				calls.ServeHTTP(w, r)
				return
			}
			web.ServeHTTP(w, r)
		}),
	}
	defer s.Close() //nolint:errcheck // what is open ends with it
	return s.Serve(l)
}

func pages(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		w.Header().Set("Served-By", name)
		fmt.Fprintf(w, "%s %s %s %s %d\n", name, r.Proto, r.Method, r.URL.RequestURI(), n)
	})
	// What the server sees of a request, and an answer with all that an answer can have.
	mux.HandleFunc("/seen", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "X-Sum")
		w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
		fmt.Fprintf(w, "%s %s %s %s %d %d\n%v\n%v\n", r.Proto, r.Method, r.Host, r.RequestURI, r.ContentLength, n,
			r.Header, r.Trailer) // maps are printed in order
		w.Header().Set("X-Sum", "42")
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s %d %x\n", name, n, hash.Sum(nil))
	})
	// As many zeros as the query says.
	mux.HandleFunc("/zeros", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.URL.RawQuery, 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Served-By", name)
		_, _ = io.CopyN(w, Zeros{}, n) // or until the client goes
	})
	mux.HandleFunc("/head", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %d\n", name, len(r.Header.Get("X-Large")))
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) { events(w, r, name) })
	mux.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) { socket(w, r, name) })
	return mux
}

// events sends server-sent events that name the server, until the client leaves.
func events(w http.ResponseWriter, r *http.Request, name string) {
	w.Header().Set("Content-Type", "text/event-stream")
	for r.Context().Err() == nil {
		if _, err := fmt.Fprintf(w, "data: %s\n\n",
			name); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		time.Sleep(pace)
	}
}

// socket sends each message of a WebSocket back, after the name of the server.
func socket(w http.ResponseWriter, r *http.Request, name string) {
	if r.Method == http.MethodConnect {
		lines(w, r, name)
		return
	}
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow() //nolint:errcheck // it is over
	for {
		kind, said, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, append([]byte(name+" "), said...)); err != nil {
			return
		}
	}
}

// Zeros are without end.
type Zeros struct{}

func (Zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// lines answers each line on a stream that was opened as for a WebSocket over HTTP/2 (RFC 8441).
// Who passes the stream on does not look into it, and the library for WebSockets does not know of
// it.
func lines(w http.ResponseWriter, r *http.Request, name string) {
	c := http.NewResponseController(w)
	if c.Flush() != nil {
		return
	}
	for in := bufio.NewReader(r.Body); ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(w, name+" "+line); err != nil || c.Flush() != nil {
			return
		}
	}
}

// pace is how far apart the messages of a server that streams are.
const pace = 50 * time.Millisecond

// rpc is gRPC's own test service, whose every answer has the name in its payload.
type rpc struct {
	testpb.UnimplementedTestServiceServer
	name string
}

func (s *rpc) payload() *testpb.Payload { return &testpb.Payload{Body: []byte(s.name)} }

// UnaryCall implements TestServiceServer.
func (s *rpc) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Payload: s.payload()}, nil
}

// StreamingOutputCall sends until the client goes.
func (s *rpc) StreamingOutputCall(
	_ *testpb.StreamingOutputCallRequest, stream grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse],
) error {
	for {
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: s.payload()}); err != nil {
			return err
		}
		time.Sleep(pace)
	}
}

// StreamingInputCall answers when the client has sent all.
func (s *rpc) StreamingInputCall(
	stream grpc.ClientStreamingServer[testpb.StreamingInputCallRequest, testpb.StreamingInputCallResponse],
) error {
	n := 0
	for {
		m, err := stream.Recv()
		if err == io.EOF { //nolint:errorlint // as gRPC says it
			// The answer has room for a number only: the length of the name goes with it.
			size := int32(n*1000 + len(s.name))
			return stream.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: size})
		}
		if err != nil {
			return err
		}
		n += len(m.Payload.GetBody())
	}
}

// FullDuplexCall answers each message.
func (s *rpc) FullDuplexCall(
	stream grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse],
) error {
	for {
		if _, err := stream.Recv(); err == io.EOF { //nolint:errorlint // as gRPC says it
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: s.payload()}); err != nil {
			return err
		}
	}
}
