// Package mux carries many streams over one relayed connection, so that what several clients say at the same time leaves in one write, one record of
// TLS and one packet, and is taken by one read, on each hop. The traffic-agent opens streams and the laptop's daemon joins each to the local process; the
// traffic-manager between them splices bytes and knows nothing of it.
//
// # Frames
//
// A frame begins with the number of its stream (4 bytes), what it is (1), and how many bytes follow (3), big-endian:
//
//	1 open    agentv1.RelayHeader, from the agent, with a number higher than all before
//	2 answer  1 byte, agentv1.RelayStatus, from the laptop; after OK the stream is open, else it never was
//	3 data    at most 16 KiB with the header: one record of TLS
//	4 fin     no more data follows, the other direction goes on
//	5 reset   the stream is cut, both ways
//	6 window  4 bytes: so many more bytes of data may be sent
//
// Nothing is sent of a stream before its answer. Each direction of a stream begins with a window of firstWindow. A frame of a stream that is over is
// answered with a reset if it is data, and ignored if it is not. There is no stream 0: data on it is how the agent asks whether the laptop is there, and has
// taken what was said before (silence.go). Anything else that cannot be ends the connection, and its end cuts all streams that have
// not ended.
//
// # Ways that were weighed
//
// A relayed connection for each client's is the simplest, and has no framing, no windows and no stream that waits behind another. But then a request costs each
// hop a system call, a packet, a record and a wake-up of its own. github.com/hashicorp/yamux writes a frame's header and body separately, from a goroutine
// that each sender waits for, and has as large a buffer as the window for each stream. HTTP/2 with a stream for each client would be read and
// written by goroutines that hand everything on, with flow control of the whole connection, which one slow client can use up.
package mux
