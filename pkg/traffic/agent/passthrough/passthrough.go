//go:build linux

// Package passthrough passes bytes between clients and the app of a pod while no intercept wants
// them. Start from [Serve].
//
// It is as cheap as the kernel allows: a few threads, each with an epoll instance and one buffer. A
// message costs one read and one write. A connection costs no goroutine, no timer and no buffer.
//
// Gain: 0.51 -> 0.66 of the plain requests per second on 16 connections (idle.echo.rps16), against
// goroutines and Go's own poller. Cost: connections are state machines, and a [Handover] moves a
// socket from epoll to Go's poller. Measured in the cluster (docs/design/agent.md and
// docs/performance.md). BenchmarkHTTP1Request of package agent compares a request through the
// passthrough with one through the exchange.
package passthrough

import (
	"context"
	"net"
	"runtime"
	"sync"

	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
)

// Config holds the ports to serve and the decisions about their traffic.
//
// Several threads call Policy and Choose, often and at the same time. Policy, Choose and HandOver
// must not block.
type Config struct {
	// Listeners are the listeners by the port of the app behind them. The loops dial the app on the
	// address that the client used.
	Listeners map[uint16]*net.TCPListener
	// Policy returns what happens to traffic that begins now on a port.
	Policy func(port uint16) Policy
	// Choose reports whether a request is for the app alone, on a port with the policy ByRequest.
	// Otherwise choice goes with the Handover, so that nobody has to match the request again.
	// Choose may be nil if Policy never returns ByRequest.
	Choose func(port uint16, r *http1.Head) (choice any, app bool)
	// HandOver receives each connection that the passthrough does not serve. It owns the
	// connections in it. It runs in the thread of a loop. It may be nil if Policy always returns
	// ToApp.
	HandOver func(Handover)
	// Changes receives a value each time after the results of Policy and Choose have changed. It
	// may be nil.
	Changes <-chan struct{}
	// Stop is closed to stop new connections. The loops still accept the connections that wait at
	// the listeners. It may be nil.
	Stop <-chan struct{}
}

// Policy is what happens to the traffic of a port.
type Policy int

const (
	// ToApp passes everything to the app.
	ToApp Policy = iota
	// ByRequest passes everything to the app, except for some HTTP requests.
	ByRequest
	// HandOverAll passes nothing to the app: every connection is handed over.
	HandOverAll
)

// Handover is a client's connection that the passthrough hands over. It is either a new connection,
// or an HTTP/1 connection between two requests.
type Handover struct {
	Port   uint16 // the app's port
	Client *net.TCPConn
	// App is the connection to the app that belongs to Client. It is nil unless the policy of the
	// port is ByRequest, and may be nil then. No request is in progress on it.
	App   *net.TCPConn
	Used  bool   // App has served requests
	First []byte // the bytes that the client has sent and that nobody has processed
	// Head is the head of the request that First begins with. It is nil if nobody has parsed it.
	// Choice is what Choose returned for it.
	Head   *http1.Head
	Choice any
}

// maxLoops bounds the number of threads. There is one thread for two processors, because the app
// needs processors too.
const maxLoops = 4

// Serve accepts connections and passes their bytes on. It closes the listeners.
//
// When ctx ends, Serve resets the open connections and returns nil. When Config.Stop is closed,
// Serve returns nil after the last open connection has ended. An error means that Serve could not
// start. Then it has accepted nothing, and the listeners are still open.
func Serve(ctx context.Context, c Config) error {
	loops := make([]*loop, 0, maxLoops)
	defer func() {
		for _, l := range loops {
			l.close()
		}
	}()
	for range max(1, min(maxLoops, runtime.GOMAXPROCS(0)/2)) {
		l, err := newLoop(c)
		if err != nil {
			return err
		}
		loops = append(loops, l)
	}
	// The loops have duplicates of the listeners' descriptors.
	for _, l := range c.Listeners {
		_ = l.Close()
	}
	var running sync.WaitGroup
	for _, l := range loops {
		running.Go(l.run)
	}
	ended := make(chan struct{})
	// Serve waits for this goroutine: it returns only after ended is closed.
	go func() { running.Wait(); close(ended) }()
	for stop := c.Stop; ; {
		select {
		case <-c.Changes:
			for _, l := range loops {
				l.wake()
			}
		case <-stop:
			stop = nil
			for _, l := range loops {
				l.finish()
			}
		case <-ended:
			return nil
		case <-ctx.Done():
			for _, l := range loops {
				l.stop()
			}
			<-ended
			return nil
		}
	}
}
