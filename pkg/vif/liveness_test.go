package vif

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestParsePeers(t *testing.T) {
	for name, c := range map[string]struct {
		state string
		want  map[string]peerCounters
	}{
		"no peers": {state: "private_key=aa\nlisten_port=0\n", want: map[string]peerCounters{}},
		"one": {
			state: "private_key=aa\npublic_key=b1\nendpoint=stream-3\n" +
				"last_handshake_time_sec=1\nlast_handshake_time_nsec=5\ntx_bytes=7\nrx_bytes=42\nallowed_ip=100.64.0.2/32\n",
			want: map[string]peerCounters{"b1": {received: 42, sent: 7, endpoint: "stream-3", handshake: 1e9 + 5}},
		},
		"two, the second without a message": {
			state: "public_key=b1\nrx_bytes=1\nendpoint=stream-1\npublic_key=b2\nrx_bytes=0\n",
			want:  map[string]peerCounters{"b1": {received: 1, endpoint: "stream-1"}, "b2": {}},
		},
		"a large counter": {
			state: "public_key=b1\nrx_bytes=18446744073709551615\n",
			want:  map[string]peerCounters{"b1": {received: 1<<64 - 1}},
		},
		"not a number": {state: "public_key=b1\nrx_bytes=many\n", want: map[string]peerCounters{"b1": {}}},
		"an endpoint with an equal": {
			state: "public_key=b1\nendpoint=a=b\n",
			want:  map[string]peerCounters{"b1": {endpoint: "a=b"}},
		},
		"no line end": {
			state: "public_key=b1\nrx_bytes=5",
			want:  map[string]peerCounters{"b1": {received: 5}},
		},
		"empty": {state: "", want: map[string]peerCounters{}},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, parsePeers(c.state)) })
	}
}

// FuzzParsePeers gives made-up text to parsePeers. Each value of a peer must be a line of the text.
func FuzzParsePeers(f *testing.F) {
	f.Add("public_key=b1\nendpoint=stream-1\nrx_bytes=42\npublic_key=b2\nrx_bytes=1\n")
	f.Add("rx_bytes=1\n=\npublic_key\n")
	f.Fuzz(func(t *testing.T, state string) {
		for key, p := range parsePeers(state) {
			if key != "" {
				assert.Contains(t, state, "public_key="+key)
			}
			assert.Contains(t, state, p.endpoint)
			if p.received != 0 {
				assert.Contains(t, state, "rx_bytes=")
			}
		}
	})
}
