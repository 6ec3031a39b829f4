package agent

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// framed is one end of an HTTP/2 connection. It records, stream by stream, what the other end
// sends.
type framed struct {
	net.Conn
	*http2.Framer
	changed  chan struct{} // closed when something is received, and replaced
	mu       sync.Mutex
	block    bytes.Buffer
	hpack    *hpack.Encoder
	received map[uint32][]string
	// settings that the other end has changed, the first time.
	settings map[http2.SettingID]uint32
}

func newFramed(c net.Conn) *framed {
	f := &framed{Conn: c, Framer: http2.NewFramer(c, c), received: map[uint32][]string{}, changed: make(chan struct{})}
	f.hpack = hpack.NewEncoder(&f.block)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return f
}

// fields says a request's, an answer's or trailers' fields: names and values in turn.
func (f *framed) fields(stream uint32, end bool, pairs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = f.hpack.WriteField(
			hpack.HeaderField{Name: pairs[i], Value: pairs[i+1], Sensitive: pairs[i] == "authorization"})
	}
	for begins := true; begins || f.block.Len() > 0; begins = false {
		part := slices.Clone(f.block.Next(16 << 10))
		if begins {
			_ = f.WriteHeaders(http2.HeadersFrameParam{
				StreamID: stream, BlockFragment: part, EndStream: end, EndHeaders: f.block.Len() == 0,
			})
		} else {
			_ = f.WriteContinuation(stream, f.block.Len() == 0, part)
		}
	}
}

func (f *framed) body(stream uint32, end bool, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.WriteData(stream, end, []byte(text))
}

func (f *framed) reset(stream uint32, code http2.ErrCode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.WriteRSTStream(stream, code)
}

// note writes down what was heard; parts of a body that follow one another are one.
func (f *framed) note(stream uint32, what string, end bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.received[stream]
	if n := len(all); n > 0 && strings.HasPrefix(all[n-1], "body ") && strings.HasPrefix(what, "body ") {
		all[n-1] += strings.TrimPrefix(what, "body ")
	} else if what != "body " {
		all = append(all, what)
	}
	if end {
		all = append(all, "end")
	}
	f.received[stream] = all
	close(f.changed)
	f.changed = make(chan struct{})
}

// listen notes each frame until the connection ends. onStream is called for each new
// stream.
func (f *framed) listen(onStream func(stream uint32)) {
	known := uint32(0)
	for {
		frame, err := f.ReadFrame()
		var broken http2.StreamError
		if errors.As(err, &broken) {
			f.note(broken.StreamID, "broken", false)
			continue
		}
		if err != nil {
			f.mu.Lock()
			streams := []uint32{0}
			for s := range f.received {
				streams = append(streams, s)
			}
			f.mu.Unlock()
			for _, s := range streams {
				f.note(s, "gone", false)
			}
			return
		}
		stream := frame.Header().StreamID
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if frame.IsAck() {
				continue
			}
			f.mu.Lock()
			if f.settings == nil {
				f.settings = map[http2.SettingID]uint32{}
				_ = frame.ForeachSetting(func(s http2.Setting) error { f.settings[s.ID] = s.Val; return nil })
			}
			_ = f.WriteSettingsAck()
			f.mu.Unlock()
		case *http2.MetaHeadersFrame:
			var b strings.Builder
			b.WriteString("fields")
			for _, field := range frame.Fields {
				fmt.Fprintf(&b, " %s=%q", field.Name, field.Value)
				if field.Sensitive {
					b.WriteString("!")
				}
			}
			f.note(stream, b.String(), frame.StreamEnded())
			if stream > known && onStream != nil {
				known = stream
				onStream(stream)
			}
		case *http2.DataFrame:
			f.note(stream, "body "+string(frame.Data()), frame.StreamEnded())
		case *http2.RSTStreamFrame:
			f.note(stream, "reset "+frame.ErrCode.String(), false)
		}
	}
}

// has waits until something was heard on a stream.
func (f *framed) has(stream uint32, what string) bool {
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		found := slices.ContainsFunc(f.received[stream], func(s string) bool { return strings.Contains(s, what) })
		changed := f.changed
		f.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		}
	}
}

// first is what was heard on the first stream.
func (f *framed) first() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.received[1])
}

var get = []string{":method", "GET", ":scheme", "https", ":authority", "catalog.shop:8080", ":path", "/"}

var post = []string{":method", "POST", ":scheme", "http", ":authority", "catalog", ":path", "/orders"}

func with(fields []string, more ...string) []string { return slices.Concat(fields, more) }

// conversations are what a client and a server may send each other.
var conversations = map[string]struct {
	client, server         func(f *framed, stream uint32)
	clientLast, serverLast string // what each side receives last
}{
	"fields of all kinds": {
		client: func(f *framed, s uint32) {
			f.fields(s, true, ":method", "GET", ":scheme", "https", ":authority", "catalog.shop:8080",
				":path", "/a%2Fb//c/../%zz?x=1;y&z=%41&=",
				"z-first", "1", "forwarded", "for=1.2.3.4;proto=https",
				"x-forwarded-for", "1.2.3.4", "x-forwarded-for", "5.6.7.8",
				"x-forwarded-host", "shop", "x-forwarded-proto", "https",
				"proxy-authorization", "Basic eA==", "authorization", "Bearer secret", "te", "trailers",
				"cookie", "a=b", "cookie", "c=d", "x-many", "2", "x-many", "1", "x-empty", "",
				"via", "1.1 proxy", "accept-encoding", "br", "trailer", "x-sum",
				"a-last", "\xe4\xf6 \"q\"", "host", "catalog.shop:8080")
		},
		server: func(f *framed, s uint32) {
			f.fields(s, false, ":status", "200", "set-cookie", "b=2", "set-cookie", "a=1", "x-z", "",
				"alt-svc", "h3=\":443\"", "server", "")
			f.body(s, true, "<html>")
		},
		clientLast: "end", serverLast: "end",
	},
	"neither agent nor length, and no body": {
		client: func(f *framed, s uint32) { f.fields(s, true, post...) },
		server: func(f *framed, s uint32) { f.fields(s, true, ":status", "200") }, clientLast: "end", serverLast: "end",
	},
	"an empty body of its own": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, with(post, "content-length", "0", "user-agent", "")...)
			f.body(s, true, "")
		},
		server: func(f *framed, s uint32) {
			f.fields(s, false, ":status", "204")
			f.body(s, true, "")
		}, clientLast: "end", serverLast: "end",
	},
	"trailers both ways, not announced": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, with(post, "content-length", "4")...)
			f.body(s, false, "body")
			f.fields(s, true, "x-sum", "1", "x-sum", "2")
		},
		server: func(f *framed, s uint32) {
			f.has(s, "end")
			f.fields(s, false, ":status", "200", "content-type", "application/grpc")
			f.body(s, false, "answer")
			f.fields(s, true, "grpc-status", "0", "grpc-message", "", "x-bin", "AA==")
		}, clientLast: "end", serverLast: "end",
	},
	"only trailers": {
		client: func(f *framed, s uint32) { f.fields(s, true, with(post, "content-type", "application/grpc")...) },
		server: func(f *framed, s uint32) {
			f.fields(s, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "5")
		}, clientLast: "end", serverLast: "end",
	},
	"early hints": {
		client: func(f *framed, s uint32) { f.fields(s, true, get...) },
		server: func(f *framed, s uint32) {
			f.fields(s, false, ":status", "103", "link", "</a.css>; rel=preload")
			f.fields(s, false, ":status", "103", "link", "</b.css>; rel=preload")
			f.fields(s, false, ":status", "200")
			f.body(s, true, "page")
		}, clientLast: "end", serverLast: "end",
	},
	"a body that waits to be asked for": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, with(post, "expect", "100-continue")...)
			f.has(s, "100")
			f.body(s, true, "body")
		},
		server: func(f *framed, s uint32) {
			f.fields(s, false, ":status", "100")
			f.has(s, "end")
			f.fields(s, true, ":status", "201")
		}, clientLast: "end", serverLast: "end",
	},
	"HEAD": {
		client:     func(f *framed, s uint32) { f.fields(s, true, with(get[2:], ":method", "HEAD")...) },
		server:     func(f *framed, s uint32) { f.fields(s, true, ":status", "200", "content-length", "1234") },
		clientLast: "end", serverLast: "end",
	},
	"OPTIONS of everything": {
		client: func(f *framed, s uint32) {
			f.fields(s, true, ":method", "OPTIONS", ":scheme", "http", ":authority", "catalog", ":path", "*")
		},
		server: func(f *framed, s uint32) { f.fields(s, true, ":status", "200") }, clientLast: "end", serverLast: "end",
	},
	"a host and no authority": {
		client: func(f *framed, s uint32) {
			f.fields(s, true, ":method", "GET", ":scheme", "http", ":path", "/", "host", "catalog")
		},
		server:     func(f *framed, s uint32) { f.fields(s, true, ":status", "304", "etag", "x") },
		clientLast: "end", serverLast: "end",
	},
	"fields of 100 kB": {
		client: func(f *framed, s uint32) {
			f.fields(s, true, with(get, "cookie", strings.Repeat("c", 100<<10))...)
		},
		server: func(f *framed, s uint32) {
			f.fields(s, true, ":status", "200", "set-cookie", strings.Repeat("s", 100<<10))
		}, clientLast: "end", serverLast: "end",
	},
	"both at once": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, post...)
			for i := range 5 {
				f.body(s, false, fmt.Sprintf("ask %d;", i))
				f.has(s, fmt.Sprintf("answer %d;", i))
			}
			f.body(s, true, "")
		},
		server: func(f *framed, s uint32) {
			f.fields(s, false, ":status", "200")
			for i := range 5 {
				f.has(s, fmt.Sprintf("ask %d;", i))
				f.body(s, false, fmt.Sprintf("answer %d;", i))
			}
			f.has(s, "end")
			f.body(s, true, "")
		}, clientLast: "end", serverLast: "end",
	},
	"a WebSocket": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http",
				":authority", "catalog", ":path", "/chat", "sec-websocket-version", "13")
			f.has(s, "200")
			f.body(s, false, "ping")
			f.has(s, "pong")
			f.body(s, true, "")
		},
		server: func(f *framed, s uint32) {
			f.fields(s, false, ":status", "200")
			f.has(s, "ping")
			f.body(s, false, "pong")
			f.has(s, "end")
			f.body(s, true, "")
		}, clientLast: "end", serverLast: "end",
	},
	"a client that gives up": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, post...)
			f.body(s, false, "half")
			f.has(s, "200")
			f.reset(s, http2.ErrCodeCancel)
		},
		server: func(f *framed, s uint32) {
			f.has(s, "half")
			f.fields(s, false, ":status", "200")
		}, serverLast: "reset CANCEL", clientLast: "200",
	},
	"a client with a reason of its own": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, post...)
			f.has(s, "200")
			f.reset(s, 0xfa)
		},
		server:     func(f *framed, s uint32) { f.fields(s, false, ":status", "200") },
		clientLast: "200", serverLast: "reset",
	},
	"a server that gives up before its answer": {
		client:     func(f *framed, s uint32) { f.fields(s, true, get...) },
		server:     func(f *framed, s uint32) { f.reset(s, http2.ErrCodeEnhanceYourCalm) },
		clientLast: "reset", serverLast: "end",
	},
	"a server that gives up within its answer": {
		client: func(f *framed, s uint32) { f.fields(s, true, get...) },
		server: func(f *framed, s uint32) {
			f.fields(s, false, ":status", "200", "content-length", "8")
			f.body(s, false, "half")
			f.reset(s, http2.ErrCodeInternal)
		}, clientLast: "reset", serverLast: "end",
	},
	"a server that does not wait for the whole request": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, with(post, "content-length", "100")...)
			f.body(s, false, "half")
		},
		server: func(f *framed, s uint32) {
			f.has(s, "half")
			f.fields(s, false, ":status", "413")
			f.body(s, true, "too large")
			f.reset(s, http2.ErrCodeNo)
		}, clientLast: "reset NO_ERROR", serverLast: "half",
	},
	"a server that answers first and reads on": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, post...)
			f.has(s, "end")
			f.body(s, true, "the rest")
		},
		server: func(f *framed, s uint32) { f.fields(s, true, ":status", "200") }, clientLast: "end", serverLast: "end",
	},
	"a path of a whole host": {
		client: func(f *framed, s uint32) { f.fields(s, true, with(get[:6], ":path", "//other.host/x?")...) },
		server: func(f *framed, s uint32) { f.fields(s, true, ":status", "200") }, clientLast: "end", serverLast: "end",
	},
	"bytes that mean nothing": {
		client: func(f *framed, s uint32) {
			f.fields(s, false, post...)
			f.mu.Lock()
			_ = f.WriteDataPadded(s, false, []byte("padded"), make([]byte, 100))
			_ = f.WriteRawFrame(0xbe, 7, s, []byte("unknown"))
			_ = f.WritePriority(s, http2.PriorityParam{Weight: 3})
			f.mu.Unlock()
			f.body(s, true, "")
		},
		server: func(f *framed, s uint32) {
			f.has(s, "end")
			f.fields(s, true, ":status", "200")
		}, clientLast: "end", serverLast: "end",
	},
}

// talk has a conversation with the server at an address and returns what each of the two heard of
// it.
func talk(
	t *testing.T, name, address string, servers chan *framed, dress func(net.Conn) net.Conn, who string,
) (client, server []string) {
	t.Helper()
	c := conversations[name]
	f := newFramed(dress(dial(t, address)))
	_, err := io.WriteString(f.Conn, http2.ClientPreface)
	require.NoError(t, err)
	require.NoError(t, f.WriteSettings())
	var listening sync.WaitGroup
	listening.Go(func() { f.listen(nil) })
	c.client(f, 1)
	assert.True(t, f.has(1, c.clientLast), "the client received %q", f.first())
	var there *framed
	select {
	case there = <-servers:
	case <-time.After(patience):
		t.Fatal("no request came")
	}
	assert.True(t, there.has(1, c.serverLast), "%s received %q", who, there.first())
	client, server = f.first(), there.first()
	require.NotNil(t, f.settings)
	assert.EqualValues(t, 77, f.settings[http2.SettingMaxConcurrentStreams])
	assert.EqualValues(t, 1, f.settings[http2.SettingEnableConnectProtocol])
	_ = f.Close()
	listening.Wait()
	return client, server
}

// scripted is a server that has its part of a conversation on every stream, and hands over itself
// when the first begins.
func scripted(name *string, servers chan *framed) func(net.Conn) {
	return func(c net.Conn) {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c, preface); err != nil {
			return
		}
		f := newFramed(c)
		f.mu.Lock()
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 77},
			http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		f.mu.Unlock()
		var serving sync.WaitGroup
		defer serving.Wait()
		f.listen(func(stream uint32) {
			servers <- f
			serving.Go(func() { conversations[*name].server(f, stream) })
		})
	}
}

// Whatever client and server send each other over HTTP/2, each receives what it would receive
// without the agent: the order of fields, the trailers and the error codes included.
func TestHTTP2PassesUnchanged(t *testing.T) {
	certificate, roots := newCertificate(t)
	plain := func(c net.Conn) net.Conn { return c }
	for version, dress := range map[string]func(net.Conn) net.Conn{
		"in the clear": plain,
		"TLS": func(c net.Conn) net.Conn {
			return tls.Client(c, &tls.Config{RootCAs: roots, ServerName: serverName, NextProtos: []string{"h2"}})
		},
	} {
		t.Run(version, func(t *testing.T) {
			var name string
			servers := make(chan *framed, 10)
			server := scripted(&name, servers)
			behind := func(c net.Conn) {
				if version == "TLS" {
					c = tls.Server(c,
						&tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"}})
				}
				server(c)
			}
			number := serve(t, "127.0.0.1", func(c *net.TCPConn) { behind(c) })
			alice := newLaptop(t, ok, behind)
			p := newPod(t, "127.0.0.1", number, alice.authority)
			if version == "TLS" {
				p.ports.SetCertificate(p.port, secret(t, certificate))
				p.ports.Probe(t.Context(), p.ByRequest)
			}
			nobodys := p.person("nobody", alice.address)
			all := &agentv1.Intercept{
				Uid:          "all",
				Port:         uint32(p.port),
				RelayAddress: alice.address,
				Token:        []byte("secret"),
				Match:        &agentv1.Match{Methods: []string{"GET", "HEAD", "POST", "OPTIONS", "CONNECT"}},
			}
			for name = range conversations {
				t.Run(name, func(t *testing.T) {
					client, server := talk(t, name, fmt.Sprintf("127.0.0.1:%d", number), servers, dress, "the server")
					p.table.Set([]*agentv1.Intercept{nobodys})
					through, there := talk(t, name, p.address, servers, dress, "the app")
					assert.Equal(t, client, through, "the client, asking the app")
					assert.Equal(t, server, there, "the app")
					p.table.Set([]*agentv1.Intercept{all})
					through, there = talk(t, name, p.address, servers, dress, "the laptop")
					assert.Equal(t, client, through, "the client, asking the laptop")
					assert.Equal(t, server, there, "the laptop")
					assert.Len(t, alice.headers, 1, "the laptop was asked")
					<-alice.headers
				})
			}
		})
	}
}
