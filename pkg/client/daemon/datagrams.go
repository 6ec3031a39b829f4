package daemon

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

// datagrams joins the flows on a relayed connection to a local UDP port. The process sees a port of 127.0.0.1 for each client, and may
// answer as long as the flow is remembered.
func (r *relayServer) datagrams(c net.Conn, port uint16) {
	var running sync.WaitGroup
	defer running.Wait()
	flows := datagram.NewFlows(datagram.IdleTimeout, datagram.MaxFlows, func(_ uint32, local net.Conn) { _ = local.Close() })
	defer flows.Close()
	var writing sync.Mutex
	send := func(f datagram.Frame) {
		b := f.Append(nil)
		writing.Lock()
		defer writing.Unlock()
		_, _ = c.Write(b) // reading says what is wrong with the connection
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
			refused := func() { send(datagram.Frame{Kind: datagram.Refused, Flow: f.Flow}) }
			local, err := flows.Get(f.Flow, func() (net.Conn, error) {
				ctx, cancel := context.WithTimeout(context.Background(), localTimeout)
				defer cancel()
				local, err := r.dial(ctx, "udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
				if err != nil {
					return nil, err
				}
				running.Go(func() {
					_ = datagram.Receive(local, func(b []byte) {
						flows.Touch(f.Flow)
						send(datagram.Frame{Kind: datagram.Data, Flow: f.Flow, Payload: b})
					}, refused)
				})
				return local, nil
			})
			if err != nil {
				r.log.Debug("a datagram cannot be handed to the local process", "port", port, "err", err)
				refused()
				continue
			}
			// What a write says first may be the refusal of an earlier one.
			if _, err := local.Write(f.Payload); errors.Is(err, syscall.ECONNREFUSED) {
				_, _ = local.Write(f.Payload)
			}
		}
	}
}
