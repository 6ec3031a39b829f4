// Package raw joins a client to one upstream and passes on the bytes of both, whatever their
// protocol is.
//
// It does not serve HTTP: where the client speaks first, and speaks HTTP, a Conn hands the
// connection over to who serves it request by request, together with the upstream. Only an HTTP/2
// connection whose server has spoken first stays here. Start with Conn.
package raw
