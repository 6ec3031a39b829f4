package remap

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

const (
	icmp4    = 1
	tcp      = 6
	udp      = 17
	fragment = 44 // IPv6's extension header
	icmp6    = 58
	// icmpHeader is the length of an ICMP header, in bytes. The packet that an ICMP error is about
	// follows it.
	icmpHeader = 8
)

// Out changes a packet that the laptop sends to its form in the cluster.
func (t Table) Out(packet []byte) { rewrite(packet, false, t.Real) }

// In changes a packet from the cluster to its form on the laptop.
func (t Table) In(packet []byte) { rewrite(packet, true, t.Seen) }

// rewrite changes one address of a packet. An ICMP error holds the packet that it is about. That
// one went the other way, so rewrite changes its other address. It updates checksums by the
// difference and does not compute them anew, so that a corrupt packet stays corrupt. It returns the
// changes, for the checksum of an ICMP error around this packet.
func rewrite(packet []byte, source bool, to func(netip.Addr) netip.Addr) (changes []change) {
	h := parse(packet)
	if h.version == 0 {
		return nil
	}
	place := h.destination
	if source {
		place = h.source
	}
	old, _ := netip.AddrFromSlice(place)
	address := to(old)
	if address != old {
		moved := change{bytes.Clone(place), place}
		copy(place, address.AsSlice())
		changes = append(changes, moved)
		if h.version == 4 {
			changes = append(changes, sum{field: packet[10:12]}.take(moved))
		}
		if s, ok := h.transportSum(); ok {
			changes = append(changes, s.take(moved))
		}
	}
	if h.isError() {
		if within := rewrite(h.transport[icmpHeader:], !source, to); len(within) > 0 {
			changes = append(changes, sum{field: h.transport[2:4]}.take(within...))
			changes = append(changes, within...)
		}
	}
	return changes
}

// change is the bytes of a place before and now.
type change struct{ old, now []byte }

// headers are the parts of an IP packet that may have to be changed. They are the packet's own
// bytes.
type headers struct {
	version             int // 4 or 6; 0 for bytes that are not a packet
	source, destination []byte
	protocol            byte
	transport           []byte // empty in all fragments except the first
}

func parse(packet []byte) (h headers) {
	if len(packet) < 20 {
		return h
	}
	switch packet[0] >> 4 {
	case 4:
		length := int(packet[0]&0x0f) * 4
		if length < 20 || len(packet) < length {
			return h
		}
		h = headers{version: 4, source: packet[12:16], destination: packet[16:20], protocol: packet[9]}
		if binary.BigEndian.Uint16(packet[6:])&0x1fff == 0 {
			h.transport = packet[length:]
		}
	case 6:
		if len(packet) < 40 {
			return h
		}
		h = headers{version: 6, source: packet[8:24], destination: packet[24:40], protocol: packet[6]}
		h.transport = packet[40:]
		// Other extension headers do not come through the VIF: the laptop's firewall admits none.
		if h.protocol == fragment && len(h.transport) >= 8 {
			first := binary.BigEndian.Uint16(h.transport[2:])&^7 == 0
			h.protocol, h.transport = h.transport[0], h.transport[8:]
			if !first {
				h.transport = nil
			}
		}
	}
	return h
}

// transportSum returns the checksum that covers the addresses. ICMP's over IPv4 does not.
func (h headers) transportSum() (sum, bool) {
	switch {
	case h.protocol == tcp && len(h.transport) >= 18:
		return sum{field: h.transport[16:18]}, true
	case h.protocol == udp && len(h.transport) >= 8:
		s := sum{field: h.transport[6:8], udp: true}
		return s, h.version == 6 || s.field[0]|s.field[1] != 0 // over IPv4, 0 means that there is no checksum
	case h.protocol == icmp6 && h.version == 6 && len(h.transport) >= 4:
		return sum{field: h.transport[2:4]}, true
	}
	return sum{}, false
}

// isError reports whether the packet is an ICMP error, which holds another packet: ICMP's
// destination unreachable, source quench, redirect, time exceeded and parameter problem, and
// ICMPv6's errors.
func (h headers) isError() bool {
	if len(h.transport) < icmpHeader {
		return false
	}
	switch kind := h.transport[0]; {
	case h.version == 4 && h.protocol == icmp4:
		return kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12
	case h.version == 6 && h.protocol == icmp6:
		return kind >= 1 && kind <= 4
	}
	return false
}

// sum is an Internet checksum.
type sum struct {
	field []byte
	udp   bool
}

// take updates the checksum for changes of the bytes under it (RFC 1624, equation 3). Each change
// begins at an even place.
func (s sum) take(changes ...change) change {
	before := bytes.Clone(s.field)
	total := uint32(^binary.BigEndian.Uint16(s.field))
	for _, c := range changes {
		for i := 0; i < len(c.old); i += 2 {
			total += uint32(^binary.BigEndian.Uint16(c.old[i:])) + uint32(binary.BigEndian.Uint16(c.now[i:]))
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	result := ^uint16(total)
	if s.udp && result == 0 {
		result = 0xffff // RFC 768
	}
	binary.BigEndian.PutUint16(s.field, result)
	return change{before, s.field}
}
