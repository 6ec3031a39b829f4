//go:build linux

package passthrough

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// dialApp connects to the app on the address that the client used. The app may listen on no other
// address.
func (l *loop) dialApp(p *pair) {
	address, family, ok := appAddress(p)
	if !ok {
		l.onRefused(p)
		return
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		l.onRefused(p)
		return
	}
	p.app.fd = fd
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	err = unix.Connect(fd, address)
	if err == unix.EINPROGRESS { //nolint:errorlint // an errno as it is
		p.app.connecting = true
		if l.register(&p.app, unix.EPOLLOUT) != nil {
			l.onRefused(p)
		}
		return
	}
	if err != nil || l.register(&p.app, unix.EPOLLIN) != nil || l.register(&p.client, unix.EPOLLIN) != nil {
		l.onRefused(p)
	}
}

// appAddress returns the address that the client used, with the port of the app, and its family.
func appAddress(p *pair) (address unix.Sockaddr, family int, ok bool) {
	local, err := unix.Getsockname(p.client.fd)
	if err != nil {
		return nil, 0, false
	}
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		a.Port = int(p.port)
		return a, unix.AF_INET, true
	case *unix.SockaddrInet6:
		if mapped := netip.AddrFrom16(a.Addr); mapped.Is4In6() {
			return &unix.SockaddrInet4{Port: int(p.port), Addr: mapped.Unmap().As4()}, unix.AF_INET, true
		}
		a.Port = int(p.port)
		return a, unix.AF_INET6, true
	default:
		return nil, 0, false
	}
}

// onRefused handles a client whose app does not accept the connection. The handshake with the
// client is complete, so the refusal becomes a reset. If a laptop may want the client's requests,
// the client is handed over instead.
func (l *loop) onRefused(p *pair) {
	if l.config.Policy(p.port) == ByRequest {
		if p.app.fd >= 0 {
			l.unregister(&p.app)
			_ = unix.Close(p.app.fd)
			p.app.fd = -1
		}
		l.handOver(p, nil)
		return
	}
	l.closePair(p, true)
}

// onConnected handles the end of a dial that did not complete at once.
func (l *loop) onConnected(app *socket) {
	code, err := unix.GetsockoptInt(app.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	app.connecting = false
	if err != nil || code != 0 || l.register(app.peer, unix.EPOLLIN) != nil {
		l.onRefused(app.pair)
		return
	}
	l.updateInterest(app)
}
