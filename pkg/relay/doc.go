// Package relay is the protocol that carries connections from the traffic-agent over the
// traffic-manager to the laptop. Start from [WriteHeader] and [ReadHeader].
//
// A relay connection is TLS between agent and manager, and TCP inside the VIF between manager and
// laptop. The manager checks the header, dials the laptop, passes the header on and splices the
// bytes that follow; it does not look at them.
//
//	traffic-agent                   traffic-manager                    laptop
//	     |  RelayHeader                    |                              |
//	     |-------------------------------->|  RelayHeader                 |
//	     |                                 |----------------------------->|
//	     |                                 |  RelayStatus, 1 byte         |
//	     |  RelayStatus, 1 byte            |<-----------------------------|
//	     |<--------------------------------|                              |
//	     |                                                                |
//	     |<====== one of these, as header and status agree ==============>|
//	     |        bytes             of one client's connection            |
//	     |        mux frames        of many streams (package mux)         |
//	     |        datagram frames   of many UDP flows (package datagram)  |
//
// The header is a big-endian uint16 length and an agentv1.RelayHeader. Any status but OK and
// MULTIPLEXED ends the connection. A header that asks for streams (multiplexed) is answered with
// MULTIPLEXED by a laptop that knows package mux; each stream then begins with a header and a
// status of its own, inside of its first frames. A header that asks for datagrams is answered with
// OK, and datagram frames follow.
package relay
