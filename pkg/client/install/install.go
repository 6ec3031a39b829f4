// Package install puts detour's in-cluster side into a cluster, and takes all of it away again. It is Helm underneath, so that
// `helm ls` shows the release.
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/storage/driver"
	"helm.sh/helm/v4/pkg/strvals"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/detour-dev/detour/manifests"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/wellknown"
)

const (
	// releaseName and releaseNamespace are annotations of Helm on all that belongs to a release.
	releaseName, releaseNamespace = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"
	// Namespace is where the traffic-manager lives unless told otherwise.
	Namespace = "detour-system"
	// createdLabel marks a namespace that install made, and uninstall may delete.
	createdLabel = "detour.dev/created"
)

type options struct {
	genericiooptions.IOStreams
	flags     *genericclioptions.ConfigFlags
	server    string // URL of the API server
	namespace string
	image     string
	pull      string
	set       []string
	timeout   time.Duration
	given     func(flag string) bool
	out       Printer
	result    Result
}

// Printer is the -o flag of the command line.
type Printer interface {
	AddFlags(*pflag.FlagSet)
	Validate() error
	// Print prints value in the format of the flag. For text it calls text.
	Print(value any, text func(io.Writer)) error
}

// Result says what install or uninstall did.
type Result struct {
	Namespace string `json:"namespace"`
	// Action is installed, upgraded, removed, or none when there was nothing to remove.
	Action           string   `json:"action"`
	Sessions         int      `json:"sessionsEnded,omitempty"`
	Intercepts       int      `json:"interceptsEnded,omitempty"`
	Workloads        []string `json:"workloadsRolledBack,omitempty"`
	NamespaceRemoved bool     `json:"namespaceRemoved,omitempty"`
}

func (r Result) print(w io.Writer) {
	switch r.Action {
	case "installed":
		fmt.Fprintf(w, "the traffic-manager is installed in namespace %s\nlet developers in with: kubectl -n NAMESPACE create rolebinding detour --clusterrole=detour-user --user=NAME\n", r.Namespace)
	case "upgraded":
		fmt.Fprintf(w, "the traffic-manager in namespace %s is upgraded\n", r.Namespace)
	case "removed":
		if r.Sessions > 0 {
			fmt.Fprintf(w, "ended %d session(s) and %d intercept(s)\n", r.Sessions, r.Intercepts)
		}
		fmt.Fprintln(w, "removed the traffic-manager, its webhook, roles and custom resources")
	default:
		fmt.Fprintf(w, "no traffic-manager is installed in namespace %s\n", r.Namespace)
	}
	if r.NamespaceRemoved {
		fmt.Fprintf(w, "removed the namespace %s\n", r.Namespace)
	}
}

// run does something and prints what came of it.
func (o *options) run(ctx context.Context, do func(context.Context) error) error {
	if err := o.out.Validate(); err != nil {
		return err
	}
	if err := explain.Name("--manager-namespace", o.namespace); err != nil {
		return err
	}
	if o.timeout <= 0 {
		return fmt.Errorf("--timeout %s leaves no time: write for example --timeout 5m", o.timeout)
	}
	o.result.Namespace = o.namespace
	if err := do(ctx); err != nil {
		return err
	}
	return o.out.Print(o.result, o.result.print)
}

// explained is err as a sentence for who installs, which takes more rights than a developer has.
func (o *options) explained(err error, doing string) error {
	return explain.Context{Doing: doing, Server: o.server, Role: explain.RoleAdmin}.Error(err)
}

// Command is `detour install`.
func Command(streams genericiooptions.IOStreams, flags *genericclioptions.ConfigFlags, out Printer) *cobra.Command {
	o := &options{IOStreams: streams, flags: flags, out: out}
	cmd := &cobra.Command{
		Use: "install", Short: "Install or upgrade the traffic-manager in the cluster", Args: cobra.NoArgs,
		Example: "  detour install --image registry.example.com/tools/detour-traffic:v0.1.0\n  detour install --set sessionTTL=1h\n  detour install   # upgrade with the image and values of before",
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), o.install) },
	}
	out.AddFlags(cmd.Flags())
	f := cmd.Flags()
	o.given = f.Changed
	f.StringVar(&o.image, "image", "", "image of traffic-manager and traffic-agent, as repository:tag (default that of the last install, or else the chart's)")
	f.StringVar(&o.pull, "image-pull-policy", "", "Always, IfNotPresent or Never")
	f.StringArrayVar(&o.set, "set", nil, "a value of the chart, as key=value (repeatable; docs/reference/chart-values.md lists them)")
	f.StringVar(&o.namespace, "manager-namespace", Namespace, "namespace of the traffic-manager")
	f.DurationVar(&o.timeout, "timeout", 3*time.Minute, "how long to wait for the traffic-manager")
	return cmd
}

func loadChart() (*chart.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(manifests.Chart, "chart", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := manifests.Chart.ReadFile(p)
		if err != nil {
			return err
		}
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(p, "chart/"), Data: raw})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the built-in chart: %w", err)
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("load the built-in chart %s: %w", path.Base("chart"), err)
	}
	return c, nil
}

// values are what the flags set, in accord with the chart's schema. Helm looks at that too, but only in the cluster.
func (o *options) values(c *chart.Chart) (map[string]any, error) {
	values := map[string]any{}
	if o.given("image") {
		values["image"] = o.image
	}
	if o.given("image-pull-policy") {
		values["imagePullPolicy"] = o.pull
	}
	for _, s := range o.set {
		if some, err := strvals.Parse(s); err != nil {
			return nil, fmt.Errorf("--set %s: %w: write it as key=value", s, err)
		} else if len(some) == 0 {
			return nil, fmt.Errorf("--set %q names no value: write it as key=value", s)
		}
		if err := strvals.ParseInto(s, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w: write it as key=value", s, err)
		}
	}
	all, err := util.CoalesceValues(c, values)
	if err != nil {
		return nil, fmt.Errorf("add the values to the chart's: %w", err)
	}
	if err := util.ValidateAgainstSingleSchema(all, c.Schema); err != nil {
		return nil, fmt.Errorf("the chart does not take these values (%s): docs/reference/chart-values.md lists what there is", broken(err))
	}
	return values, nil
}

// broken says in one line which values break the schema, and names them as --set does.
func broken(err error) string {
	var all []string
	for line := range strings.Lines(strings.TrimSpace(err.Error())) {
		pointer, why, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "- at "), ": ")
		if value := strings.ReplaceAll(strings.Trim(pointer, "'/"), "/", "."); value != "" {
			why = value + ": " + why
		}
		all = append(all, why)
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

func (o *options) configuration() (*action.Configuration, error) {
	config := action.NewConfiguration()
	config.SetLogger(slog.DiscardHandler)
	if err := config.Init(o.flags, o.namespace, "secret"); err != nil {
		return nil, fmt.Errorf("prepare Helm: %w", err)
	}
	return config, nil
}

// load reads the kubeconfig.
func (o *options) load() (*rest.Config, *kubernetes.Clientset, error) {
	loaded, err := kubeconfig.Load(o.flags)
	if err != nil {
		return nil, nil, err
	}
	o.server = loaded.Config.Host
	clients, err := kubernetes.NewForConfig(loaded.Config)
	if err != nil {
		return nil, nil, o.explained(err, "connect to the cluster")
	}
	return loaded.Config, clients, nil
}

func (o *options) install(ctx context.Context) error {
	c, err := loadChart()
	if err != nil {
		return err
	}
	values, err := o.values(c)
	if err != nil {
		return err
	}
	_, clients, err := o.load()
	if err != nil {
		return err
	}
	// Named namespaces other than the flag's would be Helm's default; the release belongs to the manager's.
	*o.flags.Namespace = o.namespace
	made, own, err := o.ensureNamespace(ctx, clients)
	if err != nil {
		return o.explained(err, "create the namespace "+o.namespace)
	}
	config, err := o.configuration()
	if err != nil {
		return err
	}
	if _, err := action.NewGet(config).Run(wellknown.TrafficManager); err == nil {
		upgrade := action.NewUpgrade(config)
		upgrade.Namespace, upgrade.WaitStrategy, upgrade.Timeout, upgrade.RollbackOnFailure = o.namespace, kube.StatusWatcherStrategy, o.timeout, true
		upgrade.ResetThenReuseValues = true // values that a later chart has are new to the release
		if err := o.waiting(ctx, clients, func() error { _, err := upgrade.RunWithContext(ctx, wellknown.TrafficManager, c, values); return err }); err != nil {
			return o.explained(err, "upgrade the traffic-manager")
		}
		o.result.Action = "upgraded"
		return nil
	} else if !errors.Is(err, driver.ErrReleaseNotFound) {
		return o.explained(err, "look for an installed traffic-manager")
	}
	if !own {
		o.withoutPortForward(values)
	}
	install := action.NewInstall(config)
	install.ReleaseName, install.Namespace, install.WaitStrategy, install.Timeout, install.RollbackOnFailure = wellknown.TrafficManager, o.namespace, kube.StatusWatcherStrategy, o.timeout, true
	if err := o.waiting(ctx, clients, func() error { _, err := install.RunWithContext(ctx, c, values); return err }); err != nil {
		if made {
			_ = clients.CoreV1().Namespaces().Delete(context.WithoutCancel(ctx), o.namespace, metav1.DeleteOptions{})
		}
		return o.explained(err, "install the traffic-manager")
	}
	o.result.Action = "installed"
	return nil
}

// withoutPortForward keeps all who may connect from the other pods of a namespace that is not detour's own, unless somebody asks for it.
func (o *options) withoutPortForward(values map[string]any) {
	connect, ok := values["connect"].(map[string]any)
	if !ok {
		connect = map[string]any{}
		values["connect"] = connect
	}
	if _, said := connect["portForward"]; said {
		return
	}
	connect["portForward"] = false
	fmt.Fprintf(o.ErrOut, "the namespace %s was there before: laptops get no right to port-forward, which would be one to all of its pods (`--set connect.portForward=true` gives it)\n", o.namespace)
}

// ensureNamespace makes the namespace if it is not there, and says whether it did and whether it is detour's own.
func (o *options) ensureNamespace(ctx context.Context, c *kubernetes.Clientset) (made, own bool, err error) {
	waiting, done := context.WithTimeout(ctx, o.timeout)
	defer done()
	if err := awaitEnd(waiting, c, o.namespace, o.ErrOut); err != nil {
		return false, false, err
	}
	_, err = c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.namespace, Labels: map[string]string{
		createdLabel: "true", "pod-security.kubernetes.io/enforce": "restricted",
	}}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		there, err := c.CoreV1().Namespaces().Get(ctx, o.namespace, metav1.GetOptions{})
		if err != nil {
			return false, false, err
		}
		return false, there.Labels[createdLabel] == "true", nil
	}
	return err == nil, err == nil, err
}
