package cli

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// threePorts maps three local ports to three ports of a service.
func threePorts(local, remote uint32, protocol string) (all []portMapping) {
	for n := range uint32(3) {
		all = append(all, portMapping{local: local + n, remote: fmt.Sprint(remote + n), protocol: protocol})
	}
	return all
}

func TestPortsAreParsed(t *testing.T) {
	for flag, want := range map[string][]portMapping{
		"1":                       {{local: 1}},
		"8080":                    {{local: 8080}},
		"65535":                   {{local: 65535}},
		"8080:80":                 {{local: 8080, remote: "80"}},
		"18080:http":              {{local: 18080, remote: "http"}},
		"8080:http-alt":           {{local: 8080, remote: "http-alt"}},
		"5353:53/udp":             {{local: 5353, remote: "53", protocol: "UDP"}},
		"5353:dns/UDP":            {{local: 5353, remote: "dns", protocol: "UDP"}},
		"53:53/tcp":               {{local: 53, remote: "53", protocol: "TCP"}},
		"5353/udp":                {{local: 5353, protocol: "UDP"}},
		"7000-7000":               {{local: 7000, remote: "7000"}},
		"9000-9002":               threePorts(9000, 9000, ""),
		"9000-9002:8000-8002":     threePorts(9000, 8000, ""),
		"9000-9002:8000-8002/udp": threePorts(9000, 8000, "UDP"),
	} {
		t.Run(flag, func(t *testing.T) {
			got, err := parsePorts(flag)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

func TestInvalidPortsAreRefused(t *testing.T) {
	for _, flag := range []string{
		"", "0", "65536", "-1", "+80", "http", "http:8080", ":80", "8080:", " 8080", "9000-", "9000-70000",
	} {
		t.Run(flag, func(t *testing.T) {
			_, err := parsePorts(flag)
			require.ErrorContains(t, err, "is not LOCAL[:REMOTE]")
		})
	}
	for flag, want := range map[string]string{
		"5353:53/sctp":        "only /tcp or /udp",
		"5353:53/":            "only /tcp or /udp",
		"9010-9000":           "the range ends before it begins",
		"9000-9010:9010-9000": "the range ends before it begins",
		"9000-9010:8000-8009": "there are 11 ports of this laptop for 10 of the service",
		"9000-9010:http":      "a range of ports needs a range of numbers",
		"9000-9010:9000":      "a range of ports needs a range of numbers",
		"9000:9000-9010":      "needs a range of this laptop's ports",
		"9000-9100":           "the range has 101 ports, and at most 100",
	} {
		t.Run(flag, func(t *testing.T) {
			_, err := parsePorts(flag)
			require.ErrorContains(t, err, want)
		})
	}
}
