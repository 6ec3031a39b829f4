// Package redirect sets nftables rules in a pod that send the app's traffic to the agent. Apply
// sets the rules of an injected agent once. Hold is a redirect that an attached agent changes, and
// that ends with its process.
package redirect

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

const tableName = "detour"

// The flags of a TCP header.
const (
	fin = 1 << iota
	syn
	rst
	_
	ack
)

// Apply replaces the rules of this network namespace, for IPv4 and IPv6. It does not redirect
// traffic within the pod.
func Apply(c agentconfig.Config) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	// Deleting a table that does not exist is an error, so Apply adds it first.
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(prerouting(table))
	for _, p := range c.Ports {
		protocol := byte(unix.IPPROTO_TCP)
		if p.Datagrams {
			protocol = unix.IPPROTO_UDP
		}
		if p.Redirect {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule(protocol, p.App, p.Agent)})
		}
	}
	for _, a := range c.Aliases {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule(unix.IPPROTO_TCP, a.Alias, a.App)})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set the nftables rules: %w", err)
	}
	return nil
}

// prerouting is the chain of all redirects.
func prerouting(table *nftables.Table) *nftables.Chain {
	return &nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	}
}

// rule is `iifname != "lo" PROTOCOL dport FROM redirect to :TO`. For TCP it matches only the first
// packet of a connection. The kernel tracks connections from the first rule on, and takes
// connections that are already open for new ones: the rule must not redirect those.
func rule(protocol byte, from, to uint16) []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	match := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, from)},
	}
	if protocol == unix.IPPROTO_TCP {
		match = append(match,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
			&expr.Bitwise{
				SourceRegister: 1,
				DestRegister:   1,
				Len:            1,
				Mask:           []byte{fin | syn | rst | ack},
				Xor:            []byte{0},
			},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}})
	}
	return append(match,
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, to)},
		&expr.Redir{RegisterProtoMin: 1})
}
