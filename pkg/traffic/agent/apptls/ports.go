package apptls

import (
	"context"
	"log/slog"
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
	// probeTimeout is how long an app may take to show that it speaks TLS.
	probeTimeout = time.Second
	// probePause is the least time between two probes that clients cause.
	probePause = 5 * time.Second
	// refreshInterval is how often Secrets are read.
	refreshInterval = 10 * time.Second
)

// Ports is what the agent finds out about the TLS of the app's ports. It is safe for concurrent
// use.
type Ports struct {
	ports   map[uint16]*port
	log     *slog.Logger
	changed chan struct{}
}

// port is one of them. Nothing in the cluster tells for sure whether the app speaks TLS there, so
// the agent asks the app itself.
type port struct {
	certificate *tlspeek.Certificate // nil for none
	probing     sync.Mutex           // held while the app is asked; it is taken before mu

	// mu guards the fields below.
	mu    sync.Mutex
	state state
}

// state is what is known of a port's TLS.
type state struct {
	tls     bool      // the app speaks it, and there is no certificate
	problem string    // why the certificate cannot be used
	known   bool      // the app has answered
	probed  time.Time // when it was last asked
}

// NewPorts returns the Ports of a configuration, without asking any app.
func NewPorts(config agentconfig.Config, log *slog.Logger) *Ports {
	p := &Ports{ports: map[uint16]*port{}, log: log, changed: make(chan struct{}, 1)}
	for _, c := range config.Ports {
		if c.Datagrams {
			continue
		}
		p.ports[c.App] = &port{}
		if c.Secret != "" {
			dir := filepath.Join(agentconfig.CertificatesDir, c.Secret)
			p.ports[c.App].certificate = tlspeek.NewCertificate(c.Secret, dir)
		}
	}
	return p
}

// SetCertificate sets the certificate of a port.
func (p *Ports) SetCertificate(number uint16, c *tlspeek.Certificate) {
	if p.ports[number] == nil {
		p.ports[number] = &port{}
	}
	p.ports[number].certificate = c
}

// Changed has an element when States returns something new.
func (p *Ports) Changed() <-chan struct{} { return p.changed }

// States returns what the manager is told.
func (p *Ports) States() []*agentv1.PortState {
	var states []*agentv1.PortState
	for number, port := range p.ports {
		if s := port.get(); s.tls || s.problem != "" {
			states = append(states, &agentv1.PortState{Port: uint32(number), Tls: s.tls, Problem: s.problem})
		}
	}
	return states
}

// Probe asks the apps of the ports that need it and were not asked before. It returns when all have
// answered or time is up.
func (p *Ports) Probe(ctx context.Context, needed func(port uint16) bool) {
	var all sync.WaitGroup
	for number, port := range p.ports {
		if !needed(number) {
			continue
		}
		all.Go(func() {
			port.probing.Lock()
			defer port.probing.Unlock()
			if !port.get().known {
				port.probe(ctx, number)
			}
		})
	}
	all.Wait()
}

// ProbeAgain asks the app of a port because a client's TLS could not be ended: the app may not have
// listened before.
func (p *Ports) ProbeAgain(ctx context.Context, number uint16) {
	port := p.ports[number]
	if port == nil || !port.probing.TryLock() {
		return // somebody else asks
	}
	defer port.probing.Unlock()
	if s := port.get(); !s.tls && s.problem == "" && time.Since(s.probed) > probePause {
		p.reprobeLocked(ctx, number)
	}
}

// Refresh follows the certificates of Secrets, which are renewed, expire and vanish, until ctx
// ends.
func (p *Ports) Refresh(ctx context.Context) {
	tick := time.NewTicker(refreshInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for number, port := range p.ports {
			if port.certificate == nil {
				continue
			}
			changed := port.certificate.Refresh()
			port.probing.Lock()
			if s := port.get(); s.known && (changed || port.certificate.Problem() != "" && s.problem == "") {
				p.reprobeLocked(ctx, number)
			}
			port.probing.Unlock()
		}
	}
}

// Known reports whether the app has answered on a port, so that its TLS is known.
func (p *Ports) Known(number uint16) bool { return p.ports[number].get().known }

// Reprobe asks the app of a port although it has answered before.
func (p *Ports) Reprobe(ctx context.Context, number uint16) {
	port := p.ports[number]
	port.probing.Lock()
	defer port.probing.Unlock()
	p.reprobeLocked(ctx, number)
}

// reprobeLocked asks an app, and makes Changed report what is new. The caller holds the port's lock
// probing.
func (p *Ports) reprobeLocked(ctx context.Context, number uint16) {
	port := p.ports[number]
	before := port.get()
	port.probe(ctx, number)
	now := port.get()
	if now.tls == before.tls && now.problem == before.problem {
		return
	}
	p.log.Info("the TLS of a port has changed", "port", number, "tls", now.tls, "err", now.problem)
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

func (p *port) get() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func (p *port) probe(ctx context.Context, number uint16) {
	now := p.get()
	now.probed = time.Now()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.state = now
	}()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn := dialPod(ctx, number)
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

// usable returns the port if its TLS can be ended here, or nil.
func (p *Ports) usable(number uint16) *port {
	port := p.ports[number]
	if port == nil || port.certificate == nil || port.get().problem != "" {
		return nil
	}
	return port
}

// dialPod connects to the app on the first of the pod's addresses on which it listens; it returns
// nil if the app does not listen.
func dialPod(ctx context.Context, number uint16) net.Conn {
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
