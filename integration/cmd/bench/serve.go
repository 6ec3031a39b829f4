package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

// The bulk protocol: the client sends one byte, 'u' or 'd'. After 'u' it sends bytes and
// half-closes, and the server answers with how many came (8 bytes, big-endian). After 'd' the
// server sends until the client goes.
const (
	up   = 'u'
	down = 'd'
)

const bulkBuffer = 256 << 10

// mark is the header of the requests that a personal intercept takes.
const mark = "x-bench"

func serve(ctx context.Context, web, bulk string) error {
	listener, err := net.Listen("tcp", bulk)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	datagrams, err := net.ListenPacket("udp", bulk)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go echo(datagrams)
	server := &http.Server{Addr: web, ReadHeaderTimeout: 5 * time.Second, Handler: pages()}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close(); _ = datagrams.Close(); _ = server.Close() })
	defer stop()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serveBulk(c) }()
		}
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// echo sends datagrams back.
func echo(c net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], from)
	}
}

// webRate is bulkRate over HTTP, with the header that marks the bench's requests.
func webRate(ctx context.Context, to string, sending bool, duration time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, duration+20*time.Second)
	defer cancel()
	method, url := http.MethodGet, "http://"+to+"/flood"
	var body io.Reader
	start := time.Now()
	if sending {
		method, url, body = http.MethodPut, "http://"+to+"/sink", &zeros{until: start.Add(duration)}
	}
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, err
	}
	r.Header.Set(mark, "1")
	client := &http.Client{Transport: &http.Transport{WriteBufferSize: bulkBuffer, ReadBufferSize: bulkBuffer}}
	answer, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	var total int64
	if sending {
		_, err = fmt.Fscan(answer.Body, &total)
	} else {
		for buf := make([]byte, bulkBuffer); err == nil && time.Since(start) < duration; {
			var n int
			n, err = answer.Body.Read(buf)
			total += int64(n)
		}
	}
	return float64(total) * 8 / time.Since(start).Seconds(), err
}

// zeros are zeros until a moment.
type zeros struct{ until time.Time }

func (z *zeros) Read(b []byte) (int, error) {
	if time.Now().After(z.until) {
		return 0, io.EOF
	}
	return len(b), nil
}

// pages are a small answer, the SHA-256 of what is put to /sum, and any number of bytes of the
// ChaCha8 generator with a zero seed.
func pages() http.Handler {
	mux := http.NewServeMux()
	answer := []byte("a small answer, as services give them\n")
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(answer) })
	mux.HandleFunc("GET /tunnel", answerRaw)
	mux.HandleFunc("PUT /sum", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		if _, err := io.Copy(hash, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%x", hash.Sum(nil))
	})
	mux.HandleFunc("PUT /sink", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, bulkBuffer))
		fmt.Fprint(w, n)
	})
	mux.HandleFunc("GET /flood", func(w http.ResponseWriter, _ *http.Request) {
		for buf := make([]byte, bulkBuffer); ; {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("GET /noise/{bytes}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("bytes"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.CopyN(w, rand.NewChaCha8([32]byte{}), n)
	})
	return mux
}

func serveBulk(c io.ReadWriter) {
	buf := make([]byte, bulkBuffer)
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return
	}
	if buf[0] == down {
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}
	var total uint64
	for {
		n, err := c.Read(buf)
		total += uint64(n)
		if err != nil {
			_, _ = c.Write(binary.BigEndian.AppendUint64(nil, total))
			return
		}
	}
}

// bulkRate moves bytes for a while and returns bits per second.
func bulkRate(ctx context.Context, to string, sending bool, duration time.Duration) (float64, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(duration + 20*time.Second))
	start := time.Now()
	if sending {
		buf := make([]byte, bulkBuffer)
		buf[0] = up
		for time.Since(start) < duration {
			if _, err := c.Write(buf); err != nil {
				return 0, fmt.Errorf("send: %w", err)
			}
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return 0, fmt.Errorf("half-close: %w", err)
		}
		return counted(c, start)
	}
	if _, err := c.Write([]byte{down}); err != nil {
		return 0, fmt.Errorf("ask: %w", err)
	}
	return receiveFor(c, start, duration)
}
