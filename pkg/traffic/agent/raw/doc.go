// Package raw joins a client to one upstream and passes on the bytes of both, whatever their
// protocol is.
//
// It does not serve HTTP. If the client speaks first, and speaks HTTP, a Conn hands the connection
// and its upstream over to package exchange or h2, which serve it request by request. Only an
// HTTP/2 connection whose server has spoken first stays here. Start with Conn.
package raw
