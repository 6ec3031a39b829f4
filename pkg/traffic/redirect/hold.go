package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// owned is NFT_TABLE_F_OWNER: the kernel removes the table when the socket that made it closes, and
// so when its process ends.
const owned = 2

// Hold is a redirect that can change and that ends with its process. Its methods may be called by
// several goroutines.
type Hold struct {
	table *nftables.Table
	chain *nftables.Chain

	// mu guards the fields below.
	mu     sync.Mutex
	conn   *nftables.Conn // nil before Open
	opened time.Time
}

// settling is how long Set waits after Open before the first redirect. The kernel tracks
// connections from Open on; those that were open before need this time to be tracked well.
const settling = time.Second

// NewHold returns a Hold that redirects nothing yet. Its name must be unique in this network
// namespace.
func NewHold(name string) *Hold {
	table := &nftables.Table{Name: tableName + "-" + name, Family: nftables.TableFamilyINet}
	return &Hold{table: table, chain: prerouting(table)}
}

// Set redirects new connections to the ports that are keys to the ports that are values, and no
// others. Without ports the table stays: without it the kernel would forget where it has redirected
// the open connections.
func (h *Hold) Set(ports map[uint16]uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil {
		return errors.New("a redirect needs Open before it, and ends with Close")
	}
	if len(ports) > 0 {
		time.Sleep(settling - time.Since(h.opened))
	}
	h.conn.FlushChain(h.chain)
	h.track(h.conn)
	for from, to := range ports {
		h.conn.AddRule(&nftables.Rule{Table: h.table, Chain: h.chain, Exprs: rule(unix.IPPROTO_TCP, from, to)})
	}
	if err := h.conn.Flush(); err != nil {
		return fmt.Errorf("set the nftables rules: %w", err)
	}
	return nil
}

// Open prepares the redirect. It returns an error when this process may not set one.
func (h *Hold) Open() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = time.Now()
	return h.openLocked()
}

// Close removes the redirect, and so ends the connections that it has redirected.
func (h *Hold) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.releaseLocked()
}

func (h *Hold) releaseLocked() error {
	if h.conn == nil {
		return nil
	}
	conn := h.conn
	h.conn = nil
	if err := conn.CloseLasting(); err != nil {
		return fmt.Errorf("remove the nftables rules: %w", err)
	}
	return nil
}

func (h *Hold) openLocked() error {
	var socket *netlink.Conn
	getSocket := func(c *netlink.Conn) error { socket = c; return nil }
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(getSocket))
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	h.conn = conn
	if err := addOwned(socket, h.table.Name); err != nil {
		err = fmt.Errorf("make an nftables table that ends with its process (it needs NET_ADMIN and Linux 5.12): %w",
			err)
		return errors.Join(err, h.releaseLocked())
	}
	conn.AddChain(h.chain)
	h.track(conn)
	if err := conn.Flush(); err != nil {
		return errors.Join(fmt.Errorf("make an nftables chain: %w", err), h.releaseLocked())
	}
	return nil
}

// track adds a rule that no packet matches, so that there is always a rule. The kernel tracks
// connections from the first redirect rule on, and mishandles those that are opening at that moment
// if it can redirect them too. It stops with the last rule, and then forgets what it has
// redirected.
func (h *Hold) track(conn *nftables.Conn) {
	const none = 0
	conn.AddRule(&nftables.Rule{Table: h.table, Chain: h.chain, Exprs: rule(unix.IPPROTO_TCP, none, none+1)})
}

// addOwned makes a table that the socket owns. Package nftables cannot send the flag.
func addOwned(socket *netlink.Conn, name string) error {
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(name + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, owned)},
	})
	if err != nil {
		return fmt.Errorf("encode the table: %w", err)
	}
	header := func(family byte, resource uint16) []byte {
		return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
	}
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: data}
	}
	if _, err := socket.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, header(0, unix.NFNL_SUBSYS_NFTABLES)),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge|netlink.Create|netlink.Excl,
			append(header(unix.NFPROTO_INET, 0), attributes...)),
		message(unix.NFNL_MSG_BATCH_END, 0, header(0, unix.NFNL_SUBSYS_NFTABLES)),
	}); err != nil {
		return err
	}
	_, err = socket.Receive()
	return err
}
