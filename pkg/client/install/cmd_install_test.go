package install

import (
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

type noPrinter struct{ Printer }

func (noPrinter) AddFlags(*pflag.FlagSet) {}
func (noPrinter) Validate() error         { return nil }

// What cannot be installed is refused before anything is asked of a cluster: the kubeconfig of this test is none.
func TestMistakesAreFoundWithoutACluster(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no value":              {[]string{"--set", "foo"}, `--set foo: key "foo" has no value: write it as key=value`},
		"empty":                 {[]string{"--set", ""}, `--set "" names no value: write it as key=value`},
		"no key":                {[]string{"--set", "=x"}, `--set "=x" names no value: write it as key=value`},
		"half a key":            {[]string{"--set", "a[=1"}, `--set "a[=1" names no value: write it as key=value`},
		"misspelt":              {[]string{"--set", "sessionTLL=1h"}, "the chart does not accept these values (additional properties 'sessionTLL' not allowed): docs/reference/chart-values.md lists all values"},
		"misspelt in connect":   {[]string{"--set", "connect.portforward=false"}, "the chart does not accept these values (connect: additional properties 'portforward' not allowed): docs/reference/chart-values.md lists all values"},
		"misspelt in udp":       {[]string{"--set", "udp.typ=NodePort"}, "the chart does not accept these values (udp: additional properties 'typ' not allowed): docs/reference/chart-values.md lists all values"},
		"misspelt in a list":    {[]string{"--set", "tolerations[0].keey=x"}, "the chart does not accept these values (tolerations.0: additional properties 'keey' not allowed): docs/reference/chart-values.md lists all values"},
		"misspelt resources":    {[]string{"--set", "resources.request.cpu=1"}, "the chart does not accept these values (resources: additional properties 'request' not allowed): docs/reference/chart-values.md lists all values"},
		"two of the wrong kind": {[]string{"--set", "udp.nodePort=x,attach=1"}, "the chart does not accept these values (attach: got number, want boolean; udp.nodePort: got string, want null or integer): docs/reference/chart-values.md lists all values"},
		"pull policy":           {[]string{"--image-pull-policy", "Sometimes"}, "the chart does not accept these values (imagePullPolicy: value must be one of 'Always', 'IfNotPresent', 'Never'): docs/reference/chart-values.md lists all values"},
		"image":                 {[]string{"--image", "bad image"}, `the chart does not accept these values (image: 'bad image' does not match pattern '^\\S*$'): docs/reference/chart-values.md lists all values`},
		"no image":              {[]string{"--image", ""}, "the chart does not accept these values (image: minLength: got 0, want 1): docs/reference/chart-values.md lists all values"},
		"time":                  {[]string{"--timeout", "-1s"}, "--timeout -1s is not positive: write for example --timeout 5m"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := NewInstallCommand(genericiooptions.NewTestIOStreamsDiscard(), genericclioptions.NewConfigFlags(true), noPrinter{})
			cmd.SetArgs(c.args)
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			require.EqualError(t, cmd.Execute(), c.want)
		})
	}
}

// All that docs/reference/chart-values.md lists passes the schema, and what Helm adds where the chart is part of another.
func TestValuesOfTheChart(t *testing.T) {
	f := &chartFlags{changed: func(string) bool { return false }, set: []string{
		"image=registry.example.com:5000/detour@sha256:abc", "imagePullPolicy=Never", "sessionCIDR=10.0.0.0/16", "sessionCIDR6=", "clusterDomain=k8s.example", "staleAfter=500ms", "sessionTTL=1h", "logLevel=debug",
		"udp.enabled=false", "udp.type=LoadBalancer", "udp.port=9000", "udp.nodePort=30000", `udp.annotations.example\.com/kind=internal`, "attach=false", "resources.limits.memory=1Gi",
		`nodeSelector.kubernetes\.io/os=linux`, "tolerations[0].key=a,tolerations[0].operator=Exists", "connect.portForward=false", "connect.subjects[0].kind=User,connect.subjects[0].name=alice", "global.team=shop",
	}}
	c, err := loadChart()
	require.NoError(t, err)
	_, err = f.values(c)
	require.NoError(t, err)
}
