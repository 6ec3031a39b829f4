package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/detour-dev/detour/integration/cluster/badnet"
	"github.com/detour-dev/detour/integration/cluster/laptop"
)

// The line of out.slow: a far and narrow link, whose own queue is short.
const (
	slowTrip  = 100 * time.Millisecond
	slowRate  = 20e6
	slowQueue = 50 * time.Millisecond
	slowLoss  = 0.01
	slowLink  = "slow0"
	// TCP needs seconds to find out what such a line carries, and small requests are counted after
	// that.
	slowEach   = 12 * time.Second
	slowSettle = 3 * time.Second
)

// slow: the laptop is behind a line to another one, which forwards to the cluster.
func (b *bench) slow(ctx context.Context) (err error) {
	if _, err := b.detour(ctx, "quit"); err != nil {
		return err
	}
	gate, err := laptop.New(ctx, 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gate.Close()) }()
	line, err := badnet.NewLine(ctx, slowLink, b.laptop.Do, gate.Do)
	if err != nil {
		return err
	}
	defer line.Close()
	if err := b.joinGate(ctx, gate); err != nil {
		return err
	}
	for _, to := range []string{"172.30.0.1", "172.30.0.11", "172.30.0.12"} {
		if err := commands(ctx, b.laptop,
			"ip route replace "+to+" dev "+slowLink+" src "+b.laptop.Address().String()); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.laptop.Reach(ctx, netip.MustParseAddr(to))) }()
	}
	plain := "ip route add 10.96.0.0/16 dev " + slowLink + " src " + b.laptop.Address().String()
	if err := commands(ctx, b.laptop, plain); err != nil {
		return err
	}
	line.Set(slowTrip, slowRate, slowQueue, slowLoss)
	withLoss, err := b.slowest(ctx)
	if err != nil {
		return err
	}
	if err := commands(ctx, b.laptop, "ip route del 10.96.0.0/16"); err != nil {
		return err
	}
	line.Set(slowTrip, slowRate, slowQueue, 0)
	for _, p := range []slowPath{
		{"out.slow", "upgrade", "api-server-upgrade"},
		{"out.slow.udp", "auto", "direct-udp"},
	} {
		if err := b.slowPath(ctx, p); err != nil {
			return err
		}
	}
	line.Set(slowTrip, slowRate, slowQueue, slowLoss)
	lossy, err := b.slowest(ctx)
	if err != nil {
		return err
	}
	if err := b.onPath(ctx, "direct-udp"); err != nil {
		return err
	}
	b.figures = append(b.figures, compared("out.slow.udp.loss", "bit/s", lossy, withLoss))
	line.Set(0, 0, 0, 0)
	_, err = b.detour(ctx, "quit")
	return err
}

// joinGate sets up both ends of the slow line: the gate forwards the laptop's packets to the
// cluster.
func (b *bench) joinGate(ctx context.Context, gate *laptop.Laptop) error {
	if err := commands(ctx, gate, "ip link set "+slowLink+" up",
		"ip route add "+b.laptop.Address().String()+" dev "+slowLink, "sysctl -qw net.ipv4.ip_forward=1",
		"ip route add 10.96.0.0/16 via "+gateway,
		"nft 'add table ip gate; add chain ip gate out { type nat hook postrouting priority 100; };"+
			" add rule ip gate out oifname eth0 masquerade'"); err != nil {
		return err
	}
	return commands(ctx, b.laptop, "ip link set "+slowLink+" up")
}

// slowPath is a path that is measured over the slow line.
type slowPath struct{ name, flag, transport string }

// slowPath measures the goodput of one path, and requests beside that load.
func (b *bench) slowPath(ctx context.Context, p slowPath) error {
	if _, err := b.detour(ctx, "quit"); err != nil {
		return err
	}
	if _, err := b.detour(ctx, "connect", "-n", namespace, "--transport", p.flag); err != nil {
		return err
	}
	if err := b.onPath(ctx, p.transport); err != nil {
		return err
	}
	quiet, err := b.asks(ctx, 2*time.Second)
	if err != nil {
		return err
	}
	goodput, late := 0.0, 0.0
	for _, direction := range []string{"up", "down"} {
		busy := make(chan float64, 1)
		var asked error
		go func() {
			time.Sleep(slowSettle)
			var p95 float64
			p95, asked = b.asks(ctx, slowEach-slowSettle-time.Second)
			busy <- p95
		}()
		rate, err := b.slowBulk(ctx, direction)
		p95 := <-busy
		if err := errors.Join(err, asked); err != nil {
			return err
		}
		say("%s %s: %.4g Mbit/s, a request takes %.4g ms", p.name, direction, rate/1e6, p95)
		if goodput == 0 || rate < goodput {
			goodput = rate
		}
		late = max(late, p95)
	}
	b.figures = append(b.figures, compared(p.name+".goodput", "bit/s", goodput, slowRate),
		compared(p.name+".p95", "ms", late, quiet))
	return nil
}

func commands(ctx context.Context, l *laptop.Laptop, lines ...string) error {
	for _, line := range lines {
		if _, err := output(l.Command(ctx, "sh", "-c", line)); err != nil {
			return err
		}
	}
	return nil
}

// slowest is the rate of the slower direction.
func (b *bench) slowest(ctx context.Context) (float64, error) {
	up, err := b.slowBulk(ctx, "up")
	if err != nil {
		return 0, err
	}
	down, err := b.slowBulk(ctx, "down")
	say("with loss: %.4g up, %.4g down", up, down)
	return min(up, down), err
}

func (b *bench) slowBulk(ctx context.Context, direction string) (float64, error) {
	return number(b.laptop.Command(ctx, b.program(), "bulk", "--to", b.address["direct"]+":9000",
		fmt.Sprintf("--up=%t", direction == "up"), "--for", slowEach.String()))
}

func (b *bench) asks(ctx context.Context, duration time.Duration) (float64, error) {
	return number(b.laptop.Command(ctx, b.program(), "ask", "--to", b.address["direct"]+":80", "--for",
		duration.String()))
}

// number runs a client of this program and returns its figure.
func number(cmd *exec.Cmd) (float64, error) {
	out, err := output(cmd)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(out, 64)
}

// ask makes one small request after the other on one connection, and returns the time in
// milliseconds that 95 of 100 take at most.
func ask(ctx context.Context, to string, duration time.Duration) (float64, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(duration + 20*time.Second))
	answers := bufio.NewReader(c)
	var all []float64
	for start := time.Now(); time.Since(start) < duration; {
		asked := time.Now()
		if err := get(c, answers); err != nil {
			return 0, err
		}
		all = append(all, float64(time.Since(asked).Microseconds())/1000)
	}
	slices.Sort(all)
	return all[len(all)*95/100], nil
}

// get makes one request.
func get(c net.Conn, answers *bufio.Reader) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	answer, err := http.ReadResponse(answers, nil)
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}
