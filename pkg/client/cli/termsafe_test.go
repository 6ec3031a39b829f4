package cli

import (
	"bytes"
	"io"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// The names of other people, their laptops and their objects do not control the terminal, and do
// not look like lines of their own.
func TestTextOfOtherPeopleIsSafeInATerminal(t *testing.T) {
	const evil = "eve\x1b]0;owned\a\x1b[2J\u009b2J\u202e\nfake line\rx\tcell"
	status := connected()
	status.User, status.Host, status.Problem = evil, evil, evil
	status.Intercepts = []*daemonv1.Intercept{{
		Service: "web", LocalPort: 8080, Phase: "Refused",
		Message: "port 80 is intercepted by " + evil, Requests: evil, Personal: true, Workload: "deployment/web",
	}}
	down := &daemonv1.StatusResponse{Problem: evil}
	ended := &daemonv1.Intercept{Service: evil}
	for name, c := range map[string]struct {
		print func(io.Writer)
		lines int
	}{
		"status":        {print: func(w io.Writer) { printStatus(w, status) }, lines: 10},
		"not connected": {print: func(w io.Writer) { printStatus(w, down) }, lines: 2},
		"list": {print: func(w io.Writer) {
			printList(w, []listRow{{
				Service: "web", Port: "80", Workload: "deployment/web", Why: evil,
				Intercepts: []listIntercept{{Laptop: evil, Phase: "Active", Mode: "intercept", Requests: evil}},
			}})
		}, lines: 2},
		"leave": {print: func(w io.Writer) { printEnded(w, ended) }, lines: 1},
		"intercept": {print: func(w io.Writer) {
			printIntercept(w, &daemonv1.InterceptRequest{}, &daemonv1.Intercept{
				Service: "web", LocalPort: 1, Workload: evil,
			}, false)
		}, lines: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			c.print(&out)
			assert.Equal(t, c.lines, bytes.Count(out.Bytes(), []byte("\n")), out.String())
			for _, r := range out.String() {
				assert.True(t, r == '\n' || unicode.IsGraphic(r), "%q in %q", r, out.String())
			}
			assert.Contains(t, out.String(), "eve")
		})
	}
}
