package tlspeek

// StartsTLS reports whether b may be the beginning of a TLS connection: a record with a ClientHello
// (RFC 8446, sections 4 and 5.1), or the first bytes of one.
func StartsTLS(b []byte) bool {
	const handshake, clientHello = 0x16, 1
	return len(b) > 0 && b[0] == handshake && (len(b) < 2 || b[1] == 3) && (len(b) < 6 || b[5] == clientHello)
}

// answersTLS reports whether b is the beginning of a TLS server's answer: a record of the
// handshake, or of an alert.
func answersTLS(b []byte) bool {
	return len(b) > 1 && (b[0] == 0x15 || b[0] == 0x16) && b[1] == 3
}
