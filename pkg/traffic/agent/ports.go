package agent

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/tlspeek"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// lookTimeout is how long an app may take to show that it speaks TLS.
	lookTimeout = time.Second
	// lookPause is the least time between two looks that clients give rise to.
	lookPause = 5 * time.Second
	// refreshPause is how often Secrets are looked at.
	refreshPause = 10 * time.Second
)

// ports is what the agent finds out about the app's ports, by their numbers.
type ports map[uint16]*port

// port is one of them. Whether the app speaks TLS there is asked of the app itself, because no name in the cluster says it for sure.
type port struct {
	certificate *tlspeek.Certificate // nil for none
	looking     sync.Mutex           // held while the app is asked

	mu    sync.Mutex
	state state
}

// state is what is known of a port's TLS.
type state struct {
	tls     bool      // it is spoken, and there is no certificate
	problem string    // why the certificate is of no use
	known   bool      // the app has answered
	looked  time.Time // when it was last asked
}

func (p *port) get() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func newPorts(c agentconfig.Config) ports {
	all := ports{}
	for _, p := range c.Ports {
		if p.Datagrams {
			continue
		}
		all[p.App] = &port{}
		if p.Secret != "" {
			all[p.App].certificate = tlspeek.NewCertificate(p.Secret, filepath.Join(agentconfig.CertificatesDir, p.Secret))
		}
	}
	return all
}

// states are what the manager is told.
func (all ports) states() []*agentv1.PortState {
	var states []*agentv1.PortState
	for number, p := range all {
		if s := p.get(); s.tls || s.problem != "" {
			states = append(states, &agentv1.PortState{Port: uint32(number), Tls: s.tls, Problem: s.problem})
		}
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
			p.looking.Lock()
			defer p.looking.Unlock()
			if !p.get().known {
				p.look(ctx, number)
			}
		})
	}
	all.Wait()
}

// lookAgain asks the app because a client's TLS could not be looked into: when it was asked before it may not have listened yet.
func (a *agent) lookAgain(ctx context.Context, number uint16) {
	p := a.ports[number]
	if p == nil || !p.looking.TryLock() {
		return // or somebody looks
	}
	defer p.looking.Unlock()
	if s := p.get(); !s.tls && s.problem == "" && time.Since(s.looked) > lookPause {
		a.lookAndTell(ctx, number)
	}
}

// refresh follows the certificates of Secrets, which are renewed, expire and vanish.
func (a *agent) refresh(ctx context.Context) {
	tick := time.NewTicker(refreshPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for number, p := range a.ports {
			if p.certificate == nil {
				continue
			}
			changed := p.certificate.Refresh()
			p.looking.Lock()
			if s := p.get(); s.known && (changed || p.certificate.Problem() != "" && s.problem == "") {
				a.lookAndTell(ctx, number)
			}
			p.looking.Unlock()
		}
	}
}

// lookAndTell says to the manager what a look has changed.
func (a *agent) lookAndTell(ctx context.Context, number uint16) {
	before := a.ports[number].get()
	a.ports[number].look(ctx, number)
	now := a.ports[number].get()
	if now.tls == before.tls && now.problem == before.problem {
		return
	}
	a.log.Info("what is known of a port's TLS has changed", "port", number, "without certificate", now.tls, "problem", now.problem)
	select {
	case a.found <- struct{}{}:
	default:
	}
}

func (p *port) look(ctx context.Context, number uint16) {
	now := p.get()
	now.looked = time.Now()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.state = now
	}()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	conn := dialSelf(ctx, number)
	if conn == nil {
		return
	}
	defer conn.Close()
	now.known = true
	if p.certificate == nil {
		now.tls = tlspeek.ServerSpeaksTLS(ctx, conn)
	} else {
		now.problem = p.certificate.Check(ctx, conn)
	}
}

// opaque says why TLS on the port is not looked into; nothing when it is.
func (p *port) opaque() string {
	if p.certificate == nil {
		return "there is no certificate"
	}
	return p.get().problem
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
