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

// owned is NFT_TABLE_F_OWNER: the kernel takes the table away when the socket is closed that made it, and so when its process dies.
const owned = 2

// Hold is a redirection that can be changed, and that does not outlive its process.
type Hold struct {
	table *nftables.Table
	chain *nftables.Chain

	mu     sync.Mutex
	conn   *nftables.Conn // nil before Open
	opened time.Time
}

// settling is how long connections that were under way when the kernel began to follow them may need before others are redirected.
const settling = time.Second

// NewHold makes one that redirects nothing yet. Its name is of this network namespace.
func NewHold(name string) *Hold {
	table := &nftables.Table{Name: tableName + "-" + name, Family: nftables.TableFamilyINet}
	return &Hold{table: table, chain: &nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	}}
}

// Set redirects new connections for the keys to the values, and no others. The table stays when there are none: without one the
// kernel would no longer know where the connections lead that were redirected before.
func (h *Hold) Set(ports map[uint16]uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil {
		return errors.New("nothing can be redirected before Open, or after Close")
	}
	if len(ports) > 0 {
		time.Sleep(settling - time.Since(h.opened))
	}
	h.conn.FlushChain(h.chain)
	h.follow(h.conn)
	for from, to := range ports {
		h.conn.AddRule(&nftables.Rule{Table: h.table, Chain: h.chain, Exprs: rule(unix.IPPROTO_TCP, from, to)})
	}
	if err := h.conn.Flush(); err != nil {
		return fmt.Errorf("set the nftables rules: %w", err)
	}
	return nil
}

// Open makes ready to redirect, and says whether this process may.
func (h *Hold) Open() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = time.Now()
	return h.open()
}

// Close takes the redirection back, and ends the connections that it led elsewhere.
func (h *Hold) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.release()
}

func (h *Hold) release() error {
	if h.conn == nil {
		return nil
	}
	conn := h.conn
	h.conn = nil
	if err := conn.CloseLasting(); err != nil {
		return fmt.Errorf("take the nftables rules back: %w", err)
	}
	return nil
}

func (h *Hold) open() error {
	var socket *netlink.Conn
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error { socket = c; return nil }))
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	h.conn = conn
	if err := addOwned(socket, h.table.Name); err != nil {
		return errors.Join(fmt.Errorf("make an nftables table that ends with its process (it needs NET_ADMIN and Linux 5.12): %w", err), h.release())
	}
	conn.AddChain(h.chain)
	h.follow(conn)
	if err := conn.Flush(); err != nil {
		return errors.Join(fmt.Errorf("make an nftables chain: %w", err), h.release())
	}
	return nil
}

// follow adds a rule that no packet meets. With the first rule that redirects the kernel begins to follow connections, and messes up those
// that are under way just then if they can be redirected as well. With the last one it stops, and forgets where others were led.
func (h *Hold) follow(conn *nftables.Conn) {
	const none = 0
	conn.AddRule(&nftables.Rule{Table: h.table, Chain: h.chain, Exprs: rule(unix.IPPROTO_TCP, none, none+1)})
}

// addOwned makes a table of the socket's own: package nftables does not send flags.
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
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge|netlink.Create|netlink.Excl, append(header(unix.NFPROTO_INET, 0), attributes...)),
		message(unix.NFNL_MSG_BATCH_END, 0, header(0, unix.NFNL_SUBSYS_NFTABLES)),
	}); err != nil {
		return err
	}
	_, err = socket.Receive()
	return err
}
