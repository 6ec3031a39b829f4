package cli

import (
	"fmt"
	"strconv"
	"strings"
)

// maxPortRange bounds the ports in a range, because each port is an intercept of its own.
const maxPortRange = 100

// portMapping sends one port of a service to one port of this laptop.
type portMapping struct {
	local    uint32
	remote   string // number or name of the service's port; empty if it has only one
	protocol string // TCP or UDP; empty if the service's port determines it
}

// parsePortFlags parses all --port flags of a command line.
func parsePortFlags(flags []string) ([]portMapping, error) {
	var all []portMapping
	seen := map[string]bool{}
	for _, flag := range flags {
		ports, err := parsePorts(flag)
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			if p.remote == "" && len(flags) > 1 {
				return nil, fmt.Errorf("--port %s: with several ports, name the service's port in each, "+
					"as in --port 8080:http --port 9090:grpc", flag)
			}
			remote := p.remote + "/" + p.protocol
			if seen[remote] {
				return nil, fmt.Errorf("--port %s: the service's port %s is given twice, "+
					"but its traffic can go to only one port of this laptop", flag, p.remote)
			}
			seen[remote] = true
			all = append(all, p)
		}
	}
	return all, nil
}

// parsePorts parses LOCAL[:REMOTE] or FIRST-LAST[:FIRST-LAST]. It may end in /tcp or /udp, for a
// service that has the port for both protocols.
func parsePorts(s string) ([]portMapping, error) {
	text, protocol, hasProtocol := strings.Cut(s, "/")
	protocol = strings.ToUpper(protocol)
	if hasProtocol && protocol != "TCP" && protocol != "UDP" {
		return nil, fmt.Errorf("--port %q: only /tcp or /udp may follow the service's port", s)
	}
	local, remote, colon := strings.Cut(text, ":")
	if colon && remote == "" && !hasProtocol {
		return nil, errInvalidPort(s)
	}
	if first, last, ok := parsePortRange(local); ok {
		return expandRange(s, first, last, remote, protocol)
	}
	n, ok := parsePortNumber(local)
	if !ok {
		return nil, errInvalidPort(s)
	}
	if _, _, isRange := parsePortRange(remote); isRange {
		return nil, fmt.Errorf("--port %q: a range of the service's ports needs a range of this laptop's ports, "+
			"as in --port 9000-9010:9000-9010", s)
	}
	return []portMapping{{local: n, remote: remote, protocol: protocol}}, nil
}

// expandRange maps the local ports from first to last to the range in remote, or to the same
// numbers.
func expandRange(flag string, first, last uint32, remote, protocol string) ([]portMapping, error) {
	remoteFirst, remoteLast := first, last
	if remote != "" {
		var ok bool
		if remoteFirst, remoteLast, ok = parsePortRange(remote); !ok {
			return nil, fmt.Errorf("--port %q: a range of ports needs a range of numbers after the colon, "+
				"as in --port 9000-9010:9000-9010", flag)
		}
	}
	switch {
	case last < first || remoteLast < remoteFirst:
		return nil, fmt.Errorf("--port %q: the range ends before it begins", flag)
	case last-first != remoteLast-remoteFirst:
		return nil, fmt.Errorf("--port %q: there are %d ports of this laptop for %d of the service",
			flag, last-first+1, remoteLast-remoteFirst+1)
	case last-first >= maxPortRange:
		return nil, fmt.Errorf("--port %q: the range has %d ports, and at most %d are allowed", flag, last-first+1,
			maxPortRange)
	}
	var all []portMapping
	for n := range last - first + 1 {
		all = append(all, portMapping{local: first + n, remote: fmt.Sprint(remoteFirst + n), protocol: protocol})
	}
	return all, nil
}

func errInvalidPort(s string) error {
	return fmt.Errorf("--port %q is not LOCAL[:REMOTE]: write for example --port 8080, --port 8080:http or --port "+
		"5353:53/udp", s)
}

func parsePortNumber(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint32(n), err == nil && n > 0
}

func parsePortRange(s string) (first, last uint32, ok bool) {
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, false
	}
	first, validFirst := parsePortNumber(from)
	last, validLast := parsePortNumber(to)
	return first, last, validFirst && validLast
}
