//go:build linux

// Package passthrough joins the connections of a port to the app behind it for as little as the kernel allows: a few threads, each
// with an epoll instance and one buffer. A message costs one read and one write; a connection costs no goroutine, no timer and no
// buffer. docs/performance.md has the figures beside goroutines and Go's own poller.
package passthrough

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
)

// Config says what belongs elsewhere.
type Config struct {
	// Listeners by the port of the app behind them. The app is asked on the address that the client used.
	Listeners map[uint16]*net.TCPListener
	// Owner says whose it is what begins now on a port. It is asked by several threads, often, and must not block; nor must Choose.
	Owner func(port uint16) Owner
	// Choose reports whether a request on a port that is looked at by request is for the app alone. Otherwise chosen goes with the
	// Handover, so that nobody has to match the request again.
	Choose func(port uint16, r *http1.Head) (chosen any, app bool)
	// Take gets what is diverted, in a loop's thread: it must not block.
	Take func(Handover)
	// Changed says that Owner and Choose may answer differently from now on.
	Changed <-chan struct{}
	// Stop, when closed, says that nothing new is to be taken after what waits at the listeners.
	Stop <-chan struct{}
}

// Owner is whose the traffic of a port is.
type Owner int

const (
	App       Owner = iota
	ByRequest       // the app's, but for some HTTP requests
	Elsewhere
)

// Handover is a client's connection that the passthrough gives away: a new one, or an HTTP/1 connection between two requests.
type Handover struct {
	Port   uint16 // the app's
	Client *net.TCPConn
	// App is the connection to the app that was made for this client, where its requests are looked at one by one and some may be
	// the app's. Nothing is under way on it. It may be nil.
	App   *net.TCPConn
	Used  bool   // App has served requests
	First []byte // what the client has sent and nobody has seen yet
	// Head is that of the request that First begins with, where it was parsed, and Choice what Choose said of it.
	Head   *http1.Head
	Choice any
}

// maxLoops bounds the threads. There is one for two processors, because the app wants some too.
const maxLoops = 4

// Serve joins connections until ctx ends; then it resets those that are open. When Stop is closed it goes on until they have ended. It
// closes the listeners.
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
	// The loops have the sockets under descriptors of their own.
	for _, l := range c.Listeners {
		_ = l.Close()
	}
	var running sync.WaitGroup
	for _, l := range loops {
		running.Go(l.run)
	}
	ended := make(chan struct{})
	go func() { running.Wait(); close(ended) }()
	for stop := c.Stop; ; {
		select {
		case <-c.Changed:
			for _, l := range loops {
				l.changed()
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

// descriptor is a listener's socket under a descriptor of its own, with the options that accepted connections inherit.
func descriptor(listener *net.TCPListener) (int, error) {
	file, err := listener.File()
	if err != nil {
		return -1, fmt.Errorf("take the listener: %w", err)
	}
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate the listener: %w", err)
	}
	// File made the socket blocking, for all who share it.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make the listener not block: %w", err)
	}
	// The app no longer sees whether its client is alive, because the agent is its client: so the agent looks.
	for _, o := range []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("set an option of the listener: %w", err)
		}
	}
	return fd, nil
}
