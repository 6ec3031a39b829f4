package tlspeek

import (
	"crypto/tls"
	"errors"
	"net"
)

// ErrNoHello says that a client did not begin with a ClientHello that can be understood.
var ErrNoHello = errors.New("the client did not begin with TLS")

// errEnough ends a handshake that was only begun to read the ClientHello.
var errEnough = errors.New("the ClientHello is read")

// Hello is what a client says at the beginning of TLS.
type Hello struct{ info tls.ClientHelloInfo }

// ReadHello reads a ClientHello from c, of which first was read before, and answers nothing. seen is all that was read, for whoever
// carries on with the connection; it may be more than the ClientHello.
func ReadHello(c net.Conn, first []byte) (hello *Hello, seen []byte, err error) {
	reading := &recording{Conn: c, first: first}
	// The library reads it, so there is no parser here that could understand it in another way.
	err = tls.Server(reading, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = &Hello{info: *info}
		return nil, errEnough
	}}).Handshake()
	if hello == nil {
		return nil, append(reading.seen, reading.first...), errors.Join(ErrNoHello, err)
	}
	return hello, append(reading.seen, reading.first...), nil
}

// Name is the server that the client wants (SNI), or nothing.
func (h *Hello) Name() string { return h.info.ServerName }

// Protocols are what the client would speak inside (ALPN).
func (h *Hello) Protocols() []string { return h.info.SupportedProtos }

// SupportsCertificate says whether a handshake with the client can succeed with a certificate: its versions, ciphers and kinds of signatures. Which name the
// client wants is between it and the app.
func (h *Hello) SupportsCertificate(certificate *tls.Certificate) error {
	info := h.info
	info.ServerName = ""
	return info.SupportsCertificate(certificate)
}

// recording keeps what is read, and sends nothing.
type recording struct {
	net.Conn
	first, seen []byte
}

func (r *recording) Read(b []byte) (int, error) {
	n, err := len(r.first), error(nil)
	if n > 0 {
		n = copy(b, r.first)
		r.first = r.first[n:]
	} else {
		n, err = r.Conn.Read(b)
	}
	r.seen = append(r.seen, b[:n]...)
	return n, err
}

func (r *recording) Write(b []byte) (int, error) { return len(b), nil }
func (r *recording) Close() error                { return nil }
