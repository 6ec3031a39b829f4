// Package udp stands in front of a UDP port of the app. Start with Port.
package udp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/relay/datagram"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
)

const (
	dnsPort = 53
	// dnsIdle is how long a flow of DNS is remembered: it is one question and its answer, and there
	// are very many of them.
	dnsIdle = 5 * time.Second
	// readPause is the pause after a read that failed.
	readPause = 10 * time.Millisecond
)

// Config is what a Port needs of its agent.
type Config struct {
	Port uint16 // of the app
	// Owner returns the intercept that takes the datagrams of the port now, or nil for the app.
	Owner func() *intercepts.Target
	Log   *slog.Logger
}

// Port passes on the datagrams of one UDP port. Each datagram goes where the port's traffic belongs
// when it arrives: nothing tells which datagrams are parts of one conversation.
type Port struct {
	config  Config
	sockets []*Socket
	idle    time.Duration
	app     *datagram.Flows[client, net.Conn] // the app sees a port of the agent's for each client
	running sync.WaitGroup

	// mu guards the fields below.
	mu     sync.Mutex
	target *intercepts.Target // that laptop carries datagrams for; nil before the first
	laptop *laptop.Datagrams[client]
}

// client is the sender of a datagram, and the address of the pod that it was sent to: answers have
// to come from that.
type client struct {
	socket  *Socket
	address netip.AddrPort
	local   netip.Addr
}

// New returns a Port that owns sockets. Nothing happens before Serve.
func New(config Config, sockets []*Socket) *Port {
	p := &Port{config: config, sockets: sockets, idle: datagram.IdleTimeout}
	if config.Port == dnsPort {
		p.idle = dnsIdle
	}
	p.app = datagram.NewFlows(p.idle, datagram.MaxFlows, func(_ client, c net.Conn) { _ = c.Close() })
	return p
}

// Serve passes on datagrams until ctx ends. Then it closes the sockets, and returns when all
// goroutines have ended.
func (p *Port) Serve(ctx context.Context) {
	for _, s := range p.sockets {
		p.running.Go(func() { p.receive(ctx, s) })
	}
	<-ctx.Done()
	for _, s := range p.sockets {
		_ = s.Close()
	}
	p.app.Close()
	p.running.Wait()
}

// receive reads datagrams until the socket is closed.
func (p *Port) receive(ctx context.Context, s *Socket) {
	for b := make([]byte, datagram.MaxPayload); ; {
		n, from, local, err := s.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.config.Log.Debug("a datagram cannot be read", "port", p.config.Port, "err", err)
			time.Sleep(readPause)
			continue
		}
		sender, ok := from.(*net.UDPAddr)
		own, known := netip.AddrFromSlice(local)
		if ok && known {
			p.pass(ctx, client{socket: s, address: sender.AddrPort(), local: own.Unmap()}, b[:n])
		}
	}
}

// pass gives a datagram to its owner.
func (p *Port) pass(ctx context.Context, from client, b []byte) {
	if t := p.config.Owner(); t != nil && !t.AppAnswers() && p.laptopOf(t).Send(ctx, from, b) {
		return
	}
	p.toApp(ctx, from, b)
}

// laptopOf returns the connection to the laptop of an intercept.
func (p *Port) laptopOf(t *intercepts.Target) *laptop.Datagrams[client] {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.target != t {
		d := laptop.NewDatagrams(laptop.DatagramConfig[client]{
			Link: t.Laptop, Strict: t.ErrorOnFailure, Idle: p.idle, Go: p.running.Go, Reply: p.reply, ToApp: p.toApp,
		})
		context.AfterFunc(t.Ctx, d.Close)
		p.target, p.laptop = t, d
	}
	return p.laptop
}

// toApp sends a datagram to the app on the address that the client used: the app may not listen on
// any other.
func (p *Port) toApp(ctx context.Context, from client, b []byte) {
	conn, err := p.app.Get(from, func() (net.Conn, error) {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "udp", netip.AddrPortFrom(from.local, p.config.Port).String())
		if err != nil {
			return nil, err
		}
		p.running.Go(func() { // ends when the flow is dropped, which closes c
			_ = datagram.Receive(c, func(b []byte) {
				p.app.Touch(from)
				p.reply(from, b)
			}, func() {}) // the app does not listen: the client gets no answer, as from any closed UDP port
		})
		return c, nil
	})
	if err != nil {
		p.config.Log.Debug("a datagram was dropped", "port", p.config.Port, "err", err)
		return
	}
	writeConnected(conn, b)
}

// writeConnected sends on a connected socket. The first error of such a socket may be the refusal
// of an earlier datagram.
func writeConnected(c net.Conn, b []byte) {
	if _, err := c.Write(b); errors.Is(err, syscall.ECONNREFUSED) {
		_, _ = c.Write(b)
	}
}

func (p *Port) reply(to client, b []byte) {
	_ = to.socket.Write(b, net.UDPAddrFromAddrPort(to.address), to.local.AsSlice())
}
