package cli

import (
	"fmt"
	"strconv"
	"strings"
)

// maxRange bounds a range of ports: each is an intercept of its own.
const maxRange = 100

// portWish is one port of a service that goes to one of this laptop.
type portWish struct {
	local    uint32
	remote   string // number or name of the service's port; empty where it has one
	protocol string // "TCP" or "UDP", or nothing where the port says it
}

// parsePorts reads LOCAL[:REMOTE] or FIRST-LAST[:FIRST-LAST], with /tcp or /udp at the end where the service has both.
func parsePorts(s string) ([]portWish, error) {
	text, protocol, given := strings.Cut(s, "/")
	protocol = strings.ToUpper(protocol)
	if given && protocol != "TCP" && protocol != "UDP" {
		return nil, fmt.Errorf("--port %q: after the service's port there may be /tcp or /udp", s)
	}
	left, remote, colon := strings.Cut(text, ":")
	if colon && remote == "" && !given {
		return nil, notPort(s)
	}
	first, last, local := parseRange(left)
	if !local {
		n, ok := parseNumber(left)
		switch _, _, ranged := parseRange(remote); {
		case !ok:
			return nil, notPort(s)
		case ranged:
			return nil, fmt.Errorf("--port %q: a range of the service's ports needs one of this laptop's, as in --port 9000-9010:9000-9010", s)
		}
		return []portWish{{local: n, remote: remote, protocol: protocol}}, nil
	}
	from, to := first, last
	if remote != "" {
		var ok bool
		if from, to, ok = parseRange(remote); !ok {
			return nil, fmt.Errorf("--port %q: a range of ports goes to a range of numbers, as in --port 9000-9010:9000-9010", s)
		}
	}
	switch {
	case last < first || to < from:
		return nil, fmt.Errorf("--port %q: the range ends before it begins", s)
	case last-first != to-from:
		return nil, fmt.Errorf("--port %q: there are %d ports of this laptop for %d of the service", s, last-first+1, to-from+1)
	case last-first >= maxRange:
		return nil, fmt.Errorf("--port %q: these are %d ports, and at most %d can be asked for at once", s, last-first+1, maxRange)
	}
	var all []portWish
	for n := range last - first + 1 {
		all = append(all, portWish{local: first + n, remote: fmt.Sprint(from + n), protocol: protocol})
	}
	return all, nil
}

func notPort(s string) error {
	return fmt.Errorf("--port %q is not LOCAL[:REMOTE]: write for example --port 8080, --port 8080:http or --port 5353:53/udp", s)
}

func parseNumber(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint32(n), err == nil && n > 0
}

func parseRange(s string) (first, last uint32, ok bool) {
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, false
	}
	first, begins := parseNumber(from)
	last, ends := parseNumber(to)
	return first, last, begins && ends
}
