package records

import (
	"errors"
	"net/netip"
	"strings"
)

var errNotReverse = errors.New("not the reverse name of an address")

// Reverse returns the address of a complete reverse name under in-addr.arpa. or ip6.arpa.
func Reverse(name string) (netip.Addr, error) {
	name = strings.ToLower(name)
	if base, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(base, ".")
		if len(labels) != 4 {
			return netip.Addr{}, errNotReverse
		}
		return netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	}
	base, ok := strings.CutSuffix(name, ".ip6.arpa.")
	labels := strings.Split(base, ".")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, errNotReverse
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		if len(labels[i]) != 1 {
			return netip.Addr{}, errNotReverse
		}
		b.WriteString(labels[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	return netip.ParseAddr(b.String())
}
