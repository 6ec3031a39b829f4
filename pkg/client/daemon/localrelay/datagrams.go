package localrelay

import (
	"bufio"
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"syscall"

	"github.com/detour-dev/detour/pkg/relay/datagram"
)

// serveDatagrams joins the flows on a relayed connection to a local UDP port. The local process
// sees one port of 127.0.0.1 for each client, and may answer for as long as the flow is remembered.
func (r *Server) serveDatagrams(c net.Conn, port uint16) {
	var running sync.WaitGroup
	defer running.Wait()
	closeFlow := func(_ uint32, local net.Conn) { _ = local.Close() }
	flows := datagram.NewFlows(datagram.IdleTimeout, datagram.MaxFlows, closeFlow)
	defer flows.Close()
	var writing sync.Mutex // one frame at a time
	send := func(f datagram.Frame) {
		b := f.Append(nil)
		writing.Lock()
		defer writing.Unlock()
		_, _ = c.Write(b) // the read below returns the connection's error
	}
	in, buffer := bufio.NewReaderSize(c, 64<<10), make([]byte, datagram.MaxPayload)
	for {
		f, err := datagram.Read(in, buffer)
		if err != nil {
			return
		}
		switch f.Kind {
		case datagram.Ping:
			send(datagram.Frame{Kind: datagram.Pong})
		case datagram.Data:
			refuse := func() { send(datagram.Frame{Kind: datagram.Refused, Flow: f.Flow}) }
			local, err := flows.Get(f.Flow, func() (net.Conn, error) {
				local, err := r.dialUDP(port)
				if err != nil {
					return nil, err
				}
				running.Go(func() {
					_ = datagram.Receive(local, func(b []byte) {
						flows.Touch(f.Flow)
						send(datagram.Frame{Kind: datagram.Data, Flow: f.Flow, Payload: b})
					}, refuse)
				})
				return local, nil
			})
			if err != nil {
				r.log.Debug("delivering a datagram to the local process failed", "port", port, "err", err)
				refuse()
				continue
			}
			// The first error of a write may be the refusal of an earlier datagram.
			if _, err := local.Write(f.Payload); errors.Is(err, syscall.ECONNREFUSED) {
				_, _ = local.Write(f.Payload)
			}
		}
	}
}

func (r *Server) dialUDP(port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.ctx, localTimeout)
	defer cancel()
	return r.dial(ctx, "udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
}
