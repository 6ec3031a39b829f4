package agent

import (
	"context"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/secure"
	"github.com/detour-dev/detour/pkg/traffic/agentconfig"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// lookTimeout is how long an app may take to show that it speaks TLS.
	lookTimeout = time.Second
	// lookPause is the least time between two looks that clients give rise to.
	lookPause = 5 * time.Second
)

// ports is what the agent finds out about the app's ports, by their numbers.
type ports map[uint16]*port

// port is one of them. Whether the app speaks TLS there is asked of the app itself, because no name in the cluster says it for sure.
type port struct {
	mu     sync.Mutex
	tls    bool
	known  bool      // the app has answered
	looked time.Time // when it was last asked
}

func newPorts(c agentconfig.Config) ports {
	all := ports{}
	for _, p := range c.Ports {
		all[p.App] = &port{}
	}
	return all
}

// states are what the manager is told.
func (all ports) states() []*agentv1.PortState {
	var states []*agentv1.PortState
	for number, p := range all {
		p.mu.Lock()
		if p.tls {
			states = append(states, &agentv1.PortState{Port: uint32(number), Tls: true})
		}
		p.mu.Unlock()
	}
	return states
}

// look asks the apps of ports that are served by request and were not asked before.
func (a *agent) look(ctx context.Context) {
	var all sync.WaitGroup
	for number, p := range a.ports {
		if !a.personal(number) {
			continue
		}
		all.Go(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if !p.known {
				p.look(ctx, number)
			}
		})
	}
	all.Wait()
}

// lookAgain asks the app because a client spoke TLS: when it was asked before it may not have listened yet.
func (a *agent) lookAgain(ctx context.Context, number uint16) {
	p := a.ports[number]
	if p == nil {
		return
	}
	if !p.mu.TryLock() {
		return // somebody looks
	}
	before := p.tls
	if !p.tls && time.Since(p.looked) > lookPause {
		p.look(ctx, number)
	}
	found := p.tls != before
	p.mu.Unlock()
	if found {
		a.log.Info("the app speaks TLS: its requests cannot be told apart", "port", number)
		select {
		case a.found <- struct{}{}:
		default:
		}
	}
}

func (p *port) look(ctx context.Context, number uint16) {
	p.looked = time.Now()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	conn := dialSelf(ctx, number)
	if conn == nil {
		return
	}
	p.known, p.tls = true, secure.Speaks(ctx, conn)
}

// dialSelf reaches the app on the first of the pod's addresses on which it listens; nil when it does not listen.
func dialSelf(ctx context.Context, number uint16) net.Conn {
	hosts := []string{"127.0.0.1", "::1"}
	if own, err := net.InterfaceAddrs(); err == nil {
		for _, a := range own {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				hosts = append(hosts, n.IP.String())
			}
		}
	}
	var d net.Dialer
	for _, host := range hosts {
		if conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(number)))); err == nil {
			return conn
		}
	}
	return nil
}
