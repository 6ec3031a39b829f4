package cli

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParsePorts(t *testing.T) {
	three := func(local, remote uint32, protocol string) (all []portMapping) {
		for n := range uint32(3) {
			all = append(all, portMapping{local + n, fmt.Sprint(remote + n), protocol})
		}
		return all
	}
	for flag, want := range map[string][]portMapping{
		"8080": {{8080, "", ""}}, "8080:80": {{8080, "80", ""}}, "18080:http": {{18080, "http", ""}},
		"65535": {{65535, "", ""}}, "1": {{1, "", ""}},
		"8080:http-alt": {{8080, "http-alt", ""}}, "5353:53/udp": {{5353, "53", "UDP"}}, "5353:dns/UDP": {{
			5353,
			"dns", "UDP",
		}}, "5353/udp": {{5353, "", "UDP"}}, "53:53/tcp": {{53, "53", "TCP"}},
		"9000-9002": three(9000, 9000, ""), "9000-9002:8000-8002": three(9000, 8000, ""),
		"9000-9002:8000-8002/udp": three(9000, 8000, "UDP"), "7000-7000": {{7000, "7000", ""}},
	} {
		t.Run(flag, func(t *testing.T) {
			got, err := parsePorts(flag)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
	for flag, says := range map[string]string{
		"": "is not LOCAL[:REMOTE]", "0": "is not LOCAL[:REMOTE]", "65536": "is not LOCAL[:REMOTE]",
		"-1": "is not LOCAL[:REMOTE]", "+80": "is not LOCAL[:REMOTE]", "http": "is not LOCAL[:REMOTE]",
		"http:8080": "is not LOCAL[:REMOTE]", ":80": "is not LOCAL[:REMOTE]", "8080:": "is not LOCAL[:REMOTE]",
		" 8080": "is not LOCAL[:REMOTE]", "9000-": "is not LOCAL[:REMOTE]", "9000-70000": "is not LOCAL[:REMOTE]",
		"5353:53/sctp": "only /tcp or /udp", "5353:53/": "only /tcp or /udp",
		"9010-9000": "the range ends before it begins", "9000-9010:9010-9000": "the range ends before it begins",
		"9000-9010:8000-8009": "there are 11 ports of this laptop for 10 of the service",
		"9000-9010:http":      "a range of ports needs a range of numbers", "9000-9010:9000": "a range of ports needs a " +
			"range of numbers", "9000:9000-9010": "needs a range of this laptop's ports",
		"9000-9100": "the range has 101 ports, and at most 100",
	} {
		t.Run(flag, func(t *testing.T) {
			_, err := parsePorts(flag)
			require.ErrorContains(t, err, says)
		})
	}
}
