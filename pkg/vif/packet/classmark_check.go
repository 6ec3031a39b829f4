package packet

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// checkTimeout bounds CheckClassMark, which takes about a millisecond on an idle machine.
const checkTimeout = 10 * time.Second

// CheckClassMark sends a marked and an unmarked packet through two WireGuard devices in memory,
// once for this process. It returns an error unless each message arrives with the class of its
// packet: then the WireGuard library that detour was built with uses its buffers in another way,
// and IsBulk must not be relied on.
var CheckClassMark = sync.OnceValue(func() error { return checkClassMark(SetClassMark, IsBulk) })

func checkClassMark(set func(buffer []byte, offset, size int, bulk bool), isBulk func(message []byte) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	classes := make(chan bool, 2)
	near := &checkBind{ctx: ctx, in: make(chan []byte, 16), sent: func(m []byte) {
		if len(m) > device.MessageKeepaliveSize && m[0] == device.MessageTransportType {
			select {
			case classes <- isBulk(m):
			default:
			}
		}
	}}
	far := &checkBind{ctx: ctx, in: make(chan []byte, 16), other: near}
	near.other = far
	ready := make(chan struct{})
	sender := &checkTUN{ctx: ctx, ready: ready, events: make(chan tun.Event), packets: []bool{true, false}, set: set}
	receiver := &checkTUN{ctx: ctx, ready: ready, events: make(chan tun.Event)}
	log := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	ends := []*device.Device{device.NewDevice(sender, near, log), device.NewDevice(receiver, far, log)}
	defer func() {
		cancel() // frees the devices' readers
		for _, d := range ends {
			d.Close()
		}
	}()
	if err := connect(ends[0], ends[1]); err != nil {
		return fmt.Errorf("try the class mark: %w", err)
	}
	close(ready)
	for _, want := range []bool{true, false} {
		select {
		case got := <-classes:
			if got != want {
				return errors.New("the class of a packet does not reach its message: " +
					"WireGuard's library uses the last byte of its buffers")
			}
		case <-ctx.Done():
			return fmt.Errorf("try the class mark: %w", ctx.Err())
		}
	}
	return nil
}

// connect makes each device the other's peer, and starts both.
func connect(devices ...*device.Device) error {
	var private, public [2]string
	for i := range private {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		private[i], public[i] = hex.EncodeToString(k.Bytes()), hex.EncodeToString(k.PublicKey().Bytes())
	}
	for i, d := range devices {
		conf := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=check\nallowed_ip=0.0.0.0/0\n",
			private[i], public[1-i])
		if err := d.IpcSet(conf); err != nil {
			return err
		}
		if err := d.Up(); err != nil {
			return err
		}
	}
	return nil
}

// checkTUN is a TUN with some packets to read: true is for one that is marked as bulk.
type checkTUN struct {
	ctx     context.Context
	ready   <-chan struct{} // closed when the devices have peers: before, they drop packets
	events  chan tun.Event
	packets []bool
	set     func(buffer []byte, offset, size int, bulk bool)
	closed  sync.Once
}

func (t *checkTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	ready := t.ready
	if len(t.packets) == 0 {
		ready = nil
	}
	select {
	case <-ready:
	case <-t.ctx.Done():
		return 0, os.ErrClosed
	}
	packet := bufs[0][offset : offset+100]
	clear(packet)
	packet[0], packet[3] = 0x45, byte(len(packet)) // IPv4, to 0.0.0.0
	sizes[0] = len(packet)
	t.set(bufs[0], offset, len(packet), t.packets[0])
	t.packets = t.packets[1:]
	return 1, nil
}

func (t *checkTUN) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
func (t *checkTUN) File() *os.File                          { return nil }
func (t *checkTUN) MTU() (int, error)                       { return 1420, nil }
func (t *checkTUN) Name() (string, error)                   { return "check", nil }
func (t *checkTUN) Events() <-chan tun.Event                { return t.events }
func (t *checkTUN) BatchSize() int                          { return 1 }
func (t *checkTUN) Close() error {
	t.closed.Do(func() { close(t.events) })
	return nil
}

// checkBind carries messages to another checkBind in memory.
type checkBind struct {
	ctx   context.Context
	in    chan []byte
	other *checkBind
	sent  func(message []byte) // sees each message; may be nil
}

func (b *checkBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case m := <-b.in:
			sizes[0], eps[0] = copy(packets[0], m), checkEndpoint{}
			return 1, nil
		case <-b.ctx.Done():
			return 0, net.ErrClosed
		}
	}}, 0, nil
}

func (b *checkBind) Send(messages [][]byte, _ conn.Endpoint) error {
	for _, m := range messages {
		if b.sent != nil {
			b.sent(m)
		}
		select {
		case b.other.in <- append([]byte(nil), m...):
		case <-b.ctx.Done():
			return net.ErrClosed
		}
	}
	return nil
}

func (b *checkBind) Close() error                                { return nil }
func (b *checkBind) SetMark(uint32) error                        { return nil }
func (b *checkBind) BatchSize() int                              { return 1 }
func (b *checkBind) ParseEndpoint(string) (conn.Endpoint, error) { return checkEndpoint{}, nil }

type checkEndpoint struct{}

func (checkEndpoint) ClearSrc()           {}
func (checkEndpoint) SrcToString() string { return "" }
func (checkEndpoint) DstToString() string { return "check" }
func (checkEndpoint) DstToBytes() []byte  { return []byte("check") }
func (checkEndpoint) DstIP() netip.Addr   { return netip.Addr{} }
func (checkEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
