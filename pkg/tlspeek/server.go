// Package tlspeek looks into TLS connections between a client and an app: what the client asks for
// (ReadHello), whether and how the app answers (Connect, ServerSpeaksTLS), and the app's
// certificate, with which the agent answers in its place (Certificate). Start from [ReadHello].
package tlspeek

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
)

var (
	// ErrNotTLS means that a server does not speak TLS.
	ErrNotTLS = errors.New("the server does not speak TLS")
	// ErrClientCertificate means that a server requires a client certificate, which nobody can
	// present in the client's place.
	ErrClientCertificate = errors.New("the server requires a client certificate")
	// ErrOtherCertificate means that a server presents another certificate than the expected one.
	ErrOtherCertificate = errors.New("the server presents another certificate")
)

// Connect makes a TLS connection over conn to the server of a name, with the first of protocols
// that the server supports (ALPN). accept alone decides whether the server's certificate is the
// right one. After an error conn is not closed.
func Connect(
	ctx context.Context, conn net.Conn, name string, protocols []string, accept func(*x509.Certificate) bool,
) (*tls.Conn, error) {
	first := &firstBytes{Conn: conn}
	c := tls.Client(first, &tls.Config{
		ServerName: name, NextProtos: protocols, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection verifies instead
		VerifyConnection: func(s tls.ConnectionState) error {
			if !accept(s.PeerCertificates[0]) {
				return ErrOtherCertificate
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return nil, ErrClientCertificate
		},
	})
	err := c.HandshakeContext(ctx)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, ErrClientCertificate), errors.Is(err, ErrOtherCertificate):
		return nil, err
	case !answersTLS(first.bytes[:first.n]):
		return nil, fmt.Errorf("%w: %w", ErrNotTLS, err)
	default:
		return nil, fmt.Errorf("make the TLS handshake with the server: %w", err)
	}
}

// firstBytes keeps the first bytes that are read.
type firstBytes struct {
	net.Conn
	bytes [2]byte
	n     int
}

func (f *firstBytes) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	f.n += copy(f.bytes[f.n:], b[:n])
	return n, err
}

// ServerSpeaksTLS reports whether the server at the other end of conn speaks TLS. It closes conn.
func ServerSpeaksTLS(ctx context.Context, conn net.Conn) bool {
	defer conn.Close()
	c, err := Connect(ctx, conn, "", nil, func(*x509.Certificate) bool { return true })
	if err == nil {
		_ = c.Close() // an orderly end: the server has no error to log
	}
	return !errors.Is(err, ErrNotTLS)
}

// NetConn returns the connection below.
func (f *firstBytes) NetConn() net.Conn { return f.Conn }
