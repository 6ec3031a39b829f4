// Package tlspeek is TLS as somebody in the middle has to know it: what a client asks for, what an app answers, and the certificate
// that the two may be shown.
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
	// ErrNotTLS says that a server does not speak TLS.
	ErrNotTLS = errors.New("the server does not speak TLS")
	// ErrClientCertificate says that a server wants to see its client's certificate, which nobody can show in the client's place.
	ErrClientCertificate = errors.New("the server asks for a certificate of its client")
	// ErrOtherCertificate says that a server shows another certificate than the expected one.
	ErrOtherCertificate = errors.New("the server shows another certificate")
)

// Connect makes a TLS connection to a server over conn: for a name, with the first of protocols that the server takes (ALPN), if
// accept says yes to its certificate. Who answers for the server's identity is accept alone.
func Connect(ctx context.Context, conn net.Conn, name string, protocols []string, accept func(*x509.Certificate) bool) (*tls.Conn, error) {
	heard := &hearing{Conn: conn}
	c := tls.Client(heard, &tls.Config{
		ServerName: name, NextProtos: protocols, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(s tls.ConnectionState) error {
			if !accept(s.PeerCertificates[0]) {
				return ErrOtherCertificate
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return nil, ErrClientCertificate },
	})
	err := c.HandshakeContext(ctx)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, ErrClientCertificate), errors.Is(err, ErrOtherCertificate):
		return nil, err
	case !AnswersTLS(heard.first[:heard.n]):
		return nil, fmt.Errorf("%w: %w", ErrNotTLS, err)
	default:
		return nil, fmt.Errorf("the TLS handshake with the server: %w", err)
	}
}

// hearing remembers the first bytes that were read.
type hearing struct {
	net.Conn
	first [2]byte
	n     int
}

func (h *hearing) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.n += copy(h.first[h.n:], b[:n])
	return n, err
}

// ServerSpeaksTLS says whether the server at the other end of conn speaks TLS. It closes conn.
func ServerSpeaksTLS(ctx context.Context, conn net.Conn) bool {
	defer conn.Close()
	c, err := Connect(ctx, conn, "", nil, func(*x509.Certificate) bool { return true })
	if err == nil {
		_ = c.Close() // in order: the server need not complain
	}
	return !errors.Is(err, ErrNotTLS)
}

// NetConn is the connection below.
func (h *hearing) NetConn() net.Conn { return h.Conn }
