package install

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// noPrinter is for commands that fail before they print.
type noPrinter struct{ Printer }

func (noPrinter) AddFlags(*pflag.FlagSet) {}
func (noPrinter) Validate() error         { return nil }

// notAccepted is the message about values that break the chart's schema.
func notAccepted(problems string) string {
	return "the chart does not accept these values (" + problems + "): docs/reference/chart-values.md lists all values"
}

// Mistakes are refused before the cluster is asked: this test has no kubeconfig.
func TestMistakesAreFoundWithoutACluster(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no value": {
			args: []string{"--set", "foo"},
			want: `--set foo: key "foo" has no value: write it as key=value`,
		},
		"empty":      {args: []string{"--set", ""}, want: `--set "" names no value: write it as key=value`},
		"no key":     {args: []string{"--set", "=x"}, want: `--set "=x" names no value: write it as key=value`},
		"half a key": {args: []string{"--set", "a[=1"}, want: `--set "a[=1" names no value: write it as key=value`},
		"misspelt": {
			args: []string{"--set", "sessionTLL=1h"},
			want: notAccepted("additional properties 'sessionTLL' not allowed"),
		},
		"misspelt in connect": {
			args: []string{"--set", "connect.portforward=false"},
			want: notAccepted("connect: additional properties 'portforward' not allowed"),
		},
		"misspelt in udp": {
			args: []string{"--set", "udp.typ=NodePort"},
			want: notAccepted("udp: additional properties 'typ' not allowed"),
		},
		"misspelt in a list": {
			args: []string{"--set", "tolerations[0].keey=x"},
			want: notAccepted("tolerations.0: additional properties 'keey' not allowed"),
		},
		"misspelt resources": {
			args: []string{"--set", "resources.request.cpu=1"},
			want: notAccepted("resources: additional properties 'request' not allowed"),
		},
		"two of the wrong kind": {
			args: []string{"--set", "udp.nodePort=x,attach=1"},
			want: notAccepted("attach: got number, want boolean; udp.nodePort: got string, want null or integer"),
		},
		"pull policy": {
			args: []string{"--image-pull-policy", "Sometimes"},
			want: notAccepted("imagePullPolicy: value must be one of 'Always', 'IfNotPresent', 'Never'"),
		},
		"image": {
			args: []string{"--image", "bad image"},
			want: notAccepted(`image: 'bad image' does not match pattern '^\\S*$'`),
		},
		"no image": {
			args: []string{"--image", ""},
			want: notAccepted("image: minLength: got 0, want 1"),
		},
		"time": {
			args: []string{"--timeout", "-1s"},
			want: "--timeout -1s is not positive: write for example --timeout 5m",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := NewInstallCommand(genericiooptions.NewTestIOStreamsDiscard(),
				genericclioptions.NewConfigFlags(true), noPrinter{})
			cmd.SetArgs(c.args)
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			require.EqualError(t, cmd.Execute(), c.want)
		})
	}
}

// parsedValues returns the values of these --set flags.
func parsedValues(t *testing.T, set ...string) map[string]any {
	f := &chartFlags{changed: func(string) bool { return false }, set: set}
	c, err := loadChart()
	require.NoError(t, err)
	values, err := f.values(c)
	require.NoError(t, err)
	return values
}

// The schema accepts all values of the chart, and those that Helm adds to a chart inside another
// one.
func TestAllValuesOfTheChartAreAccepted(t *testing.T) {
	parsedValues(t,
		"image=registry.example.com:5000/detour@sha256:abc", "imagePullPolicy=Never",
		"sessionCIDR=10.0.0.0/16", "sessionCIDR6=", "clusterDomain=k8s.example",
		"staleAfter=500ms", "sessionTTL=1h", "logLevel=debug",
		"udp.enabled=false", "udp.type=LoadBalancer", "udp.port=9000", "udp.nodePort=30000",
		`udp.annotations.example\.com/kind=internal`, "attach=false", "resources.limits.memory=1Gi",
		`nodeSelector.kubernetes\.io/os=linux`, "tolerations[0].key=a,tolerations[0].operator=Exists",
		"connect.portForward=false", "connect.subjects[0].kind=User,connect.subjects[0].name=alice", "global.team=shop",
	)
}

// rendered returns the manifests of the chart with these --set flags, in one text.
func rendered(t *testing.T, set ...string) string {
	c, err := loadChart()
	require.NoError(t, err)
	release := common.ReleaseOptions{Name: "traffic-manager", Namespace: "tools"}
	values, err := util.ToRenderValues(c, parsedValues(t, set...), release, common.DefaultCapabilities)
	require.NoError(t, err)
	files, err := engine.Render(c, values)
	require.NoError(t, err)
	var all strings.Builder
	for _, text := range files {
		all.WriteString(text)
	}
	return all.String()
}

func TestTheFlagsReachTheManifests(t *testing.T) {
	for name, c := range map[string]struct {
		set     []string
		with    []string
		without []string
	}{
		"by default": {
			with: []string{"namespace: tools", "pods/portforward", "name: detour-user", "imagePullPolicy: " +
				"IfNotPresent"},
		},
		"an image": {
			set:  []string{"image=registry.example.com/detour:v1", "imagePullPolicy=Always"},
			with: []string{"registry.example.com/detour:v1", "imagePullPolicy: Always"},
		},
		"no right to port-forward": {set: []string{"connect.portForward=false"}, without: []string{"pods/portforward"}},
		"no attached agents":       {set: []string{"attach=false"}, without: []string{"pods/ephemeralcontainers"}},
		"who may connect": {
			set:  []string{"connect.subjects[0].kind=User,connect.subjects[0].name=alice"},
			with: []string{"name: alice"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			all := rendered(t, c.set...)
			for _, text := range c.with {
				assert.Contains(t, all, text)
			}
			for _, text := range c.without {
				assert.NotContains(t, all, text)
			}
		})
	}
}

// The right to port-forward includes all pods of the namespace.
func TestPortForwardIsOffInANamespaceOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		set      []string
		disabled bool
		want     any
	}{
		"no flag": {disabled: true, want: false},
		"another value of connect": {
			set:      []string{"connect.subjects[0].kind=User,connect.subjects[0].name=alice"},
			disabled: true,
			want:     false,
		},
		"the user switches it on":      {set: []string{"connect.portForward=true"}, want: true},
		"the user switches it off too": {set: []string{"connect.portForward=false"}, want: false},
	} {
		t.Run(name, func(t *testing.T) {
			values := parsedValues(t, c.set...)
			require.Equal(t, c.disabled, disablePortForward(values))
			require.Equal(t, c.want, values["connect"].(map[string]any)["portForward"])
		})
	}
}

func TestInstallCreatesItsNamespaceOnce(t *testing.T) {
	own := namespaceNamed(Namespace, map[string]string{createdLabel: "true"})
	for name, c := range map[string]struct {
		cluster *cluster
		want    namespaceState
	}{
		"there is none":          {cluster: fakeCluster(t), want: namespaceState{created: true, own: true}},
		"install created it":     {cluster: fakeCluster(t, own), want: namespaceState{own: true}},
		"somebody else did that": {cluster: fakeCluster(t, namespaceNamed(Namespace, nil))},
	} {
		t.Run(name, func(t *testing.T) {
			o := &installOptions{commonOptions: fakeOptions(t)}
			o.cluster = c.cluster
			got, err := o.ensureNamespace(t.Context())
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			n := namespaceNamed(Namespace, nil)
			require.True(t, o.cluster.exists(t, n))
			if c.want.created {
				require.Equal(t, "restricted", n.Labels["pod-security.kubernetes.io/enforce"])
			}
		})
	}
}

func TestResultText(t *testing.T) {
	for name, c := range map[string]struct {
		result Result
		want   string
	}{
		"installed": {
			result: Result{Namespace: "tools", Action: actionInstalled},
			want: "installed the traffic-manager in namespace tools\nto let a developer use it: " +
				"kubectl -n NAMESPACE create rolebinding detour --clusterrole=detour-user --user=NAME\n",
		},
		"upgraded": {
			result: Result{Namespace: "tools", Action: actionUpgraded},
			want:   "upgraded the traffic-manager in namespace tools\n",
		},
		"removed": {
			result: Result{
				Namespace:        "tools",
				Action:           actionRemoved,
				Sessions:         1,
				Intercepts:       2,
				NamespaceRemoved: true,
			},
			want: "ended 1 session(s) and 2 intercept(s)\nremoved the traffic-manager, its webhook, roles and " +
				"custom resources\nremoved the namespace tools\n",
		},
		"nothing to remove": {
			result: Result{Namespace: "tools", Action: actionNone},
			want:   "no traffic-manager is installed in namespace tools\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			c.result.printText(&out)
			require.Equal(t, c.want, out.String())
		})
	}
}
