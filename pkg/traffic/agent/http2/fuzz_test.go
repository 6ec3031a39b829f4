package http2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// witness is a server that writes down what it understands, request by request.
type witness struct {
	mu  sync.Mutex
	saw []string
}

func (w *witness) ServeHTTP(answer http.ResponseWriter, r *http.Request) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %q %s %q", r.Method, r.RequestURI, r.Proto, r.Host)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		fmt.Fprintf(&b, " %s=%q", name, r.Header[name])
	}
	w.mu.Lock()
	w.saw = append(w.saw, b.String())
	w.mu.Unlock()
	_, err := io.Copy(answer, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// told returns what a witness reads of a client's bytes, which reach it directly or through a
// Router.
func told(t *testing.T, sent []byte, through bool) []string {
	var all []string
	synctest.Test(t, func(t *testing.T) {
		var running sync.WaitGroup
		w := &witness{}
		app, laptop, copies := newPlace(t, &running, w.ServeHTTP), newPlace(t, &running, w.ServeHTTP), newPlace(t,
			&running, func(http.ResponseWriter, *http.Request) {})
		app.Lost, laptop.Lost = nil, nil
		var client net.Conn
		if through {
			here, there := net.Pipe()
			client = here
			route := func(r *Request) Route {
				to := Route{Copies: []*Backend{copies.Backend}}
				if slices.Contains(r.Values("x-dev"), "alice") {
					to.Backend = laptop.Backend
				}
				return to
			}
			running.Go(func() {
				New(t.Context(), there, Config{
					App: app.Backend, Route: route,
					Go: running.Go,
				}).Serve()
			})
		} else {
			var err error
			if client, err = app.Dial(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		running.Go(func() { _, _ = io.Copy(io.Discard, client) })
		running.Go(func() { _, _ = client.Write(sent) })
		synctest.Wait()
		_ = client.Close()
		synctest.Wait()
		for _, p := range []*place{app, laptop, copies} {
			_ = p.server.Close()
			p.over()
		}
		running.Wait()          // nothing of ours is left
		time.Sleep(time.Minute) // nor of the server, which takes its time to say why it ends
		all = w.saw
	})
	return all
}

// Whatever a client sends, the app and the laptop together see no request that the app would not
// see without the agent.
func FuzzSwitch(f *testing.F) {
	var b bytes.Buffer
	framer := http2.NewFramer(&b, nil)
	var block bytes.Buffer
	fields := hpack.NewEncoder(&block)
	head := func(stream uint32, end bool, pairs ...string) {
		block.Reset()
		for i := 0; i < len(pairs); i += 2 {
			_ = fields.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		_ = framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: stream, BlockFragment: block.Bytes(), EndStream: end,
			EndHeaders: true,
		})
	}
	seed := func() {
		f.Add(bytes.Clone(b.Bytes()))
		b.Reset()
		fields = hpack.NewEncoder(&block)
		b.WriteString(http2.ClientPreface)
		_ = framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	}
	get := []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}
	seed()
	seed()
	head(1, true, get...)
	head(3, true, append(get, "x-dev", "alice")...)
	seed()
	head(1, false, append(get, "content-length", "4")...)
	_ = framer.WriteData(1, false, []byte("bo"))
	_ = framer.WritePing(false, [8]byte{})
	_ = framer.WriteDataPadded(1, false, []byte("dy"), []byte{0, 0})
	head(1, true, "x-sum", "1")
	seed()
	head(1, false, append(get, "transfer-encoding", "chunked", "x-dev", "alice")...)
	_ = framer.WriteData(1, true, []byte("0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"))
	head(3, false, append(get, "content-length", "1")...)
	_ = framer.WriteData(3, true, []byte("ab"))
	head(5, true, append(get[:6:6], ":path", "/ HTTP/1.1\r\nx: y")...)
	seed()
	head(1, false, append(get, "x-dev", "alice")...)
	_ = framer.WriteRSTStream(1, http2.ErrCodeCancel)
	_ = framer.WriteWindowUpdate(0, 1<<31-1)
	seed()
	head(1, false, ":method", "CONNECT", ":authority", "db:5432")
	_ = framer.WriteGoAway(0, http2.ErrCodeNo, nil)
	_ = framer.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
	seed()
	f.Fuzz(func(t *testing.T, sent []byte) {
		direct, through := told(t, sent, false), told(t, sent, true)
		for _, r := range through {
			i := slices.Index(direct, r)
			if i < 0 {
				t.Fatalf("a request that was not sent: %s\nof %q", r, direct)
			}
			direct = slices.Delete(direct, i, i+1)
		}
	})
}
