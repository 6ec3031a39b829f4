package tlspeek

import (
	"crypto/tls"
	"errors"
	"net"
)

// ErrNoHello means that a client did not begin with a valid ClientHello.
var ErrNoHello = errors.New("the client did not begin with TLS")

// errHelloRead ends a handshake that serves to read the ClientHello only.
var errHelloRead = errors.New("the ClientHello is read")

// Hello is the ClientHello of a client.
type Hello struct{ info tls.ClientHelloInfo }

// ReadHello reads a ClientHello from c, of which prefix was already read, and sends nothing.
// Exactly one of hello and err is nil. read is everything that was read, prefix included, for the
// code that takes over the connection; it may be more than the ClientHello.
func ReadHello(c net.Conn, prefix []byte) (hello *Hello, read []byte, err error) {
	recording := &recordingConn{Conn: c, prefix: prefix}
	// crypto/tls parses it, so that no second parser here can understand it in another way.
	err = tls.Server(recording, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = &Hello{info: *info}
		return nil, errHelloRead
	}}).Handshake()
	if hello == nil {
		return nil, append(recording.read, recording.prefix...), errors.Join(ErrNoHello, err)
	}
	return hello, append(recording.read, recording.prefix...), nil
}

// Name returns the server name that the client asks for (SNI), or nothing.
func (h *Hello) Name() string { return h.info.ServerName }

// Protocols returns the protocols that the client offers inside TLS (ALPN).
func (h *Hello) Protocols() []string { return h.info.SupportedProtos }

// SupportsCertificate returns nil if the client's versions, ciphers and signature algorithms allow
// a handshake with a certificate. It ignores the server name, which is between client and app.
func (h *Hello) SupportsCertificate(certificate *tls.Certificate) error {
	info := h.info
	info.ServerName = ""
	return info.SupportsCertificate(certificate)
}

// recordingConn records what is read, and sends nothing.
type recordingConn struct {
	net.Conn
	prefix []byte // already read, and returned first
	read   []byte
}

func (r *recordingConn) Read(b []byte) (int, error) {
	n, err := len(r.prefix), error(nil)
	if n > 0 {
		n = copy(b, r.prefix)
		r.prefix = r.prefix[n:]
	} else {
		n, err = r.Conn.Read(b)
	}
	r.read = append(r.read, b[:n]...)
	return n, err
}

func (r *recordingConn) Write(b []byte) (int, error) { return len(b), nil }
func (r *recordingConn) Close() error                { return nil }
