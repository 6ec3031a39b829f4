// Package mux carries many streams over one relay connection, so that whatever several clients send
// at the same time leaves in one write, one TLS record and one packet on each hop, and arrives in
// one read. The traffic-agent opens streams, and the laptop's daemon joins each of them to the
// local process. The traffic-manager between them splices bytes and does not know about streams.
// Start from [Conn].
//
// # Frames
//
// A frame begins with the number of its stream (4 bytes), its kind (1) and its length without this
// header (3), big-endian:
//
//	1 open    agentv1.RelayHeader, from the agent, with a number higher than all before
//	2 answer  1 byte, agentv1.RelayStatus, from the laptop; only OK opens the stream
//	3 data    with the header at most 16 KiB, which is one TLS record
//	4 fin     no more data follows, the other direction goes on
//	5 reset   both directions end at once
//	6 window  4 bytes: the peer may send that many more bytes of data
//
// An end sends nothing on a stream before the answer. Each direction of a stream starts with a
// window of firstWindow bytes. An end answers data on a stream that is over with a reset, and
// ignores other frames for it. Stream 0 does not exist: data on it is a ping, and the reset that
// answers it is the pong (keepalive.go). Any other violation ends the connection. The end of the
// connection cuts all streams that have not ended.
//
// # Alternatives that were rejected
//
// One relay connection for each client connection is simplest, and needs no frames and no windows,
// and no stream waits behind another. But then a request costs each hop a system call, a packet, a
// TLS record and a wake-up of its own. github.com/hashicorp/yamux writes a frame's header and its
// body separately, from a goroutine that each sender waits for, and buffers a whole window for each
// stream. HTTP/2 with a stream for each client would need goroutines that hand everything on, and
// its flow control of the whole connection lets one slow client block the others.
package mux
