package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// manyWait bounds what one connection may take, on a busy machine.
const manyWait = 20 * time.Second

// connections: many are open at once while new ones come and go. What it noted of the
// traffic-manager's goroutines and of both ends' memory before, it notes again after.
func (b *bench) connections(ctx context.Context) error {
	// The daemon that was there in what went before stays.
	if _, err := b.detour(ctx, "connect", "-n", namespace); err != nil {
		return err
	}
	if err := b.onPath(ctx, "direct-udp"); err != nil {
		return err
	}
	before, err := goroutines(ctx)
	if err != nil {
		return err
	}
	rate, err := number(b.laptop.Command(ctx, b.program(), "many", "--to", b.address["direct"]+":80"))
	if err != nil {
		return err
	}
	b.figures = append(b.figures, figure{Name: "out.connections.new", Unit: "/s", Value: rate})
	after := before
	for range 60 { // what is closed is remembered for some time
		if after, err = goroutines(ctx); err != nil {
			return err
		}
		if after <= before*1.05 {
			break
		}
		time.Sleep(time.Second)
	}
	b.figures = append(b.figures, compared("out.connections.goroutines", "", after, before))
	return b.memory()
}

var goroutineCount = regexp.MustCompile(`(?m)^go_goroutines ([0-9.e+]+)$`)

// goroutines are the traffic-manager's.
func goroutines(ctx context.Context) (float64, error) {
	pod, err := output(exec.CommandContext(ctx, "kubectl", "-n", "detour-system", "get", "pods", "-l",
		"app=traffic-manager", "-o", "jsonpath={.items[0].metadata.name}"))
	if err != nil {
		return 0, err
	}
	page, err := output(exec.CommandContext(ctx, "kubectl", "get", "--raw",
		"/api/v1/namespaces/detour-system/pods/"+pod+":8080/proxy/metrics"))
	if err != nil {
		return 0, err
	}
	found := goroutineCount.FindStringSubmatch(page)
	if found == nil {
		return 0, fmt.Errorf("the traffic-manager's metrics name no goroutines")
	}
	return strconv.ParseFloat(found[1], 64)
}

// many opens connections, and while they stay open makes new ones, each for one request. Then it
// asks on all those that are open. It returns how many new ones there were in a second.
func many(ctx context.Context, to string, open, rate int, duration time.Duration) (float64, error) {
	var failure atomic.Pointer[error]
	fail := func(err error) { failure.CompareAndSwap(nil, &err) }
	failed := func() error {
		if err := failure.Load(); err != nil {
			return *err
		}
		return ctx.Err()
	}
	held := make([]net.Conn, open)
	var all sync.WaitGroup
	places := make(chan int)
	for range 64 {
		all.Go(func() {
			for i := range places {
				c, err := dialOnce(ctx, to)
				if err == nil {
					held[i] = c
					err = page(c) // the server waits for the first request not as long as for the next
				}
				if err != nil {
					fail(fmt.Errorf("connection %d: %w", i, err))
				}
			}
		})
	}
	for i := range held {
		places <- i
	}
	close(places)
	all.Wait()
	if err := failed(); err != nil {
		return 0, err
	}
	start, count := time.Now(), 0
	for ; time.Since(start) < duration && failed() == nil; count++ {
		time.Sleep(time.Until(start.Add(time.Duration(count) * time.Second / time.Duration(rate))))
		all.Go(func() {
			c, err := dialOnce(ctx, to)
			if err == nil {
				err = page(c)
				_ = c.Close()
			}
			if err != nil {
				fail(fmt.Errorf("a new connection beside %d others: %w", open, err))
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	for i, c := range held {
		if err := page(c); err != nil {
			fail(fmt.Errorf("connection %d, after a minute: %w", i, err))
		}
		_ = c.Close()
	}
	return float64(count) / took.Seconds(), failed()
}

func dialOnce(ctx context.Context, to string) (net.Conn, error) {
	d := net.Dialer{Timeout: manyWait}
	return d.DialContext(ctx, "tcp", to)
}

// page asks for one on a connection.
func page(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(manyWait))
	return get(c, bufio.NewReader(c))
}
