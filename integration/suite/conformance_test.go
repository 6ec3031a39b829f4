package suite

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// h2specCases is how many cases h2spec 2.2.1 has, the strict ones included.
const h2specCases = 146

// h2spec runs the HTTP/2 conformance test h2spec against a host and returns the cases that fail.
func h2spec(t *testing.T, host string) (failed []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.xml")
	// The exit code is 1 when a case fails, so the report tells whether h2spec ran.
	// --timeout is in seconds. It bounds each dial too, which waits on a busy machine.
	out, _ := kit.Run("h2spec", "--host", host, "--port", "80", "--timeout", "10", "--strict", "--junit-report", file)
	raw, err := os.ReadFile(file)
	require.NoError(t, err, out)
	var report struct {
		Suites []struct {
			Cases []struct {
				Package string    `xml:"package,attr"`
				Name    string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	require.NoError(t, xml.Unmarshal(raw, &report))
	cases := 0
	for _, s := range report.Suites {
		for _, c := range s.Cases {
			cases++
			if c.Failure != nil || c.Error != nil {
				failed = append(failed, c.Package+" "+c.Name)
			}
		}
	}
	require.Equal(t, h2specCases, cases, out)
	return failed
}

// An HTTP/2 client that breaks the rules gets from the agent what it gets from the app.
func TestHTTP2Conformance(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine))
	kit.Apply(t, "conformance.yaml")
	kit.WaitForRollout(t, "shop", "deployment/conformance")
	kit.Connect(t)
	kit.WaitForEndpoints(t, "http://conformance.shop/")
	direct := h2spec(t, "conformance.shop")
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "conformance", "--port", port, "--header", "x-dev=alice")
	kit.WaitForEndpoints(t, "http://conformance.shop/")
	through := h2spec(t, "conformance.shop")
	t.Logf("h2spec: %d of %d cases fail direct, %d through the agent", len(direct), h2specCases, len(through))
	require.Subset(t, direct, through, "no case that passes direct fails through the agent")
}
