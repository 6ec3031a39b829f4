package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/detour-dev/detour/pkg/relay/datagram"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
)

const (
	dnsPort = 53
	// dnsIdle is how long a flow of DNS is remembered: it is one question and its answer, and there are very many of them.
	dnsIdle = 5 * time.Second
)

// datagrams stands in front of a UDP port of the app. Each datagram goes where the port's traffic belongs when it comes: nothing says
// that those before it were of the same conversation.
type datagrams struct {
	agent   *agent
	port    uint16
	sockets []*udpSocket
	idle    time.Duration
	app     *datagram.Flows[udpClient, net.Conn] // the app sees a port of the agent's for each client
	running sync.WaitGroup

	// mu guards the fields below.
	mu     sync.Mutex
	of     *target // that laptop carries datagrams for; nil before the first
	laptop *laptop.Datagrams[udpClient]
}

// udpClient is who sent a datagram, and to which of the pod's addresses: answers have to come from that.
type udpClient struct {
	socket  *udpSocket
	address netip.AddrPort
	local   netip.Addr
}

// udpSocket takes datagrams of one IP family.
type udpSocket struct {
	net.PacketConn
	read  func([]byte) (int, net.Addr, net.IP, error)
	write func(b []byte, to net.Addr, from net.IP) error
}

// listenUDP takes datagrams on a port of all addresses, of the families that there are.
func listenUDP(ctx context.Context, port uint16) (all []*udpSocket, err error) {
	var config net.ListenConfig
	for _, network := range []string{"udp4", "udp6"} {
		c, lerr := config.ListenPacket(ctx, network, ":"+strconv.Itoa(int(port)))
		if lerr != nil {
			err = errors.Join(err, lerr)
			continue
		}
		s := &udpSocket{PacketConn: c}
		if network == "udp4" {
			p := ipv4.NewPacketConn(c)
			lerr = p.SetControlMessage(ipv4.FlagDst, true)
			s.read = func(b []byte) (int, net.Addr, net.IP, error) {
				n, control, from, err := p.ReadFrom(b)
				if control == nil {
					return n, from, nil, err
				}
				return n, from, control.Dst, err
			}
			s.write = func(b []byte, to net.Addr, from net.IP) error {
				_, err := p.WriteTo(b, &ipv4.ControlMessage{Src: from}, to)
				return err
			}
		} else {
			p := ipv6.NewPacketConn(c)
			lerr = p.SetControlMessage(ipv6.FlagDst, true)
			s.read = func(b []byte) (int, net.Addr, net.IP, error) {
				n, control, from, err := p.ReadFrom(b)
				if control == nil {
					return n, from, nil, err
				}
				return n, from, control.Dst, err
			}
			s.write = func(b []byte, to net.Addr, from net.IP) error {
				_, err := p.WriteTo(b, &ipv6.ControlMessage{Src: from}, to)
				return err
			}
		}
		if lerr != nil {
			_ = c.Close()
			err = errors.Join(err, lerr)
			continue
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("listen for datagrams: %w", err)
	}
	return all, nil
}

func (a *agent) newDatagrams(port uint16, sockets []*udpSocket) *datagrams {
	d := &datagrams{agent: a, port: port, sockets: sockets, idle: datagram.IdleTimeout}
	if port == dnsPort {
		d.idle = dnsIdle
	}
	d.app = datagram.NewFlows(d.idle, datagram.MaxFlows, func(_ udpClient, c net.Conn) { _ = c.Close() })
	return d
}

// serve takes datagrams until ctx ends.
func (d *datagrams) serve(ctx context.Context) {
	for _, s := range d.sockets {
		d.running.Go(func() {
			for b := make([]byte, datagram.MaxPayload); ; {
				n, from, local, err := s.read(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					d.agent.log.Debug("a datagram cannot be taken", "port", d.port, "err", err)
					time.Sleep(10 * time.Millisecond)
					continue
				}
				udp, ok := from.(*net.UDPAddr)
				own, known := netip.AddrFromSlice(local)
				if ok && known {
					d.take(ctx, udpClient{socket: s, address: udp.AddrPort(), local: own.Unmap()}, b[:n])
				}
			}
		})
	}
	<-ctx.Done()
	for _, s := range d.sockets {
		_ = s.Close()
	}
	d.app.Close()
	d.running.Wait()
}

// take gives a datagram to whom it belongs now.
func (d *datagrams) take(ctx context.Context, client udpClient, b []byte) {
	if t := d.agent.table(d.port); t != nil && t.datagrams != nil && !t.datagrams.out() {
		if d.laptopOf(t.datagrams).Send(ctx, client, b) {
			return
		}
	}
	d.toApp(ctx, client, b)
}

// laptopOf returns what carries datagrams to the laptop of an intercept.
func (d *datagrams) laptopOf(t *target) *laptop.Datagrams[udpClient] {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of != t {
		link := laptop.NewDatagrams(laptop.DatagramConfig[udpClient]{
			Link: t.laptop, Strict: t.ErrorOnFailure, Idle: d.idle, Go: d.running.Go, Reply: d.answer, ToApp: d.toApp,
		})
		context.AfterFunc(t.ctx, link.Close)
		d.of, d.laptop = t, link
	}
	return d.laptop
}

// toApp asks the app on the address that the client used: it may not listen on any other.
func (d *datagrams) toApp(ctx context.Context, client udpClient, b []byte) {
	conn, err := d.app.Get(client, func() (net.Conn, error) {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "udp", netip.AddrPortFrom(client.local, d.port).String())
		if err != nil {
			return nil, err
		}
		d.running.Go(func() {
			_ = datagram.Receive(c, func(b []byte) {
				d.app.Touch(client)
				d.answer(client, b)
			}, func() {}) // the app does not listen: who sends datagrams has to be content with silence
		})
		return c, nil
	})
	if err != nil {
		d.agent.log.Debug("a datagram was dropped", "port", d.port, "err", err)
		return
	}
	writeDatagram(conn, b)
}

// writeDatagram sends on a connected socket. What it says first may be the refusal of an earlier one.
func writeDatagram(c net.Conn, b []byte) {
	if _, err := c.Write(b); errors.Is(err, syscall.ECONNREFUSED) {
		_, _ = c.Write(b)
	}
}

func (d *datagrams) answer(client udpClient, b []byte) {
	_ = client.socket.write(b, net.UDPAddrFromAddrPort(client.address), client.local.AsSlice())
}
