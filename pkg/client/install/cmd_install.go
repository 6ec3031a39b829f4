package install

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/storage/driver"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/wellknown"
)

// installOptions are the flags of `detour install`.
type installOptions struct {
	commonOptions
	chartFlags
	chart *chart.Chart   // Complete sets it
	all   map[string]any // the values for the chart; Validate sets them
}

// NewInstallCommand returns `detour install`. flags are kubectl's, which the root command has
// added.
func NewInstallCommand(
	streams genericiooptions.IOStreams, flags *genericclioptions.ConfigFlags, printer Printer,
) *cobra.Command {
	o := &installOptions{commonOptions: commonOptions{IOStreams: streams, kubeconfig: flags, printer: printer}}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install or upgrade the traffic-manager in the cluster",
		Args:  cobra.NoArgs,
		Example: `  detour install --image registry.example.com/tools/detour-traffic:v0.1.0
  detour install --set sessionTTL=1h
  detour install   # upgrade, and keep the image and values of the last install`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Complete(); err != nil {
				return err
			}
			if err := o.Validate(); err != nil {
				return err
			}
			return o.Run(cmd.Context())
		},
	}
	o.addFlags(cmd, 3*time.Minute, "how long to wait for the traffic-manager")
	f := cmd.Flags()
	o.changed = f.Changed
	f.StringVar(&o.image, "image", "", "image of traffic-manager and traffic-agent, as repository:tag "+
		"(default: that of the last install, otherwise the chart's)")
	f.StringVar(&o.pullPolicy, "image-pull-policy", "", "Always, IfNotPresent or Never")
	f.StringArrayVar(&o.set, "set", nil, "a value of the chart, as key=value (repeatable; "+
		"docs/reference/chart-values.md lists them)")
	return cmd
}

// Complete loads the chart.
func (o *installOptions) Complete() (err error) {
	o.chart, err = loadChart()
	return err
}

// Validate refuses mistakes before anything is asked of a cluster.
func (o *installOptions) Validate() (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	o.all, err = o.values(o.chart)
	return err
}

// Run installs the chart, or upgrades the release.
func (o *installOptions) Run(ctx context.Context) error {
	if err := o.connect(); err != nil {
		return err
	}
	namespace, err := o.ensureNamespace(ctx)
	if err != nil {
		return o.explained(err, "create the namespace "+o.namespace)
	}
	helm, err := o.helm()
	if err != nil {
		return err
	}
	result := Result{Namespace: o.namespace, Action: actionUpgraded}
	switch _, err := action.NewGet(helm).Run(wellknown.TrafficManager); {
	case err == nil:
		if err := o.upgrade(ctx, helm); err != nil {
			return o.explained(err, "upgrade the traffic-manager")
		}
	case errors.Is(err, driver.ErrReleaseNotFound):
		if err := o.install(ctx, helm, namespace); err != nil {
			return o.explained(err, "install the traffic-manager")
		}
		result.Action = actionInstalled
	default:
		return o.explained(err, "look for an installed traffic-manager")
	}
	return o.printer.Print(result, result.printText)
}

func (o *installOptions) upgrade(ctx context.Context, helm *action.Configuration) error {
	upgrade := action.NewUpgrade(helm)
	upgrade.Namespace = o.namespace
	upgrade.WaitStrategy, upgrade.Timeout, upgrade.RollbackOnFailure = kube.StatusWatcherStrategy, o.timeout, true
	upgrade.ResetThenReuseValues = true // a later chart may have values that are new to the release
	return o.whileWatching(ctx, func() error {
		_, err := upgrade.RunWithContext(ctx, wellknown.TrafficManager, o.chart, o.all)
		return err
	})
}

func (o *installOptions) install(ctx context.Context, helm *action.Configuration, namespace namespaceState) error {
	if !namespace.own && disablePortForward(o.all) {
		fmt.Fprintf(o.ErrOut, "the namespace %s was there before: laptops get no right to port-forward, "+
			"which would include all of its pods (`--set connect.portForward=true` grants it)\n", o.namespace)
	}
	install := action.NewInstall(helm)
	install.ReleaseName, install.Namespace = wellknown.TrafficManager, o.namespace
	install.WaitStrategy, install.Timeout, install.RollbackOnFailure = kube.StatusWatcherStrategy, o.timeout, true
	err := o.whileWatching(ctx, func() error {
		_, err := install.RunWithContext(ctx, o.chart, o.all)
		return err
	})
	if err != nil && namespace.created {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.namespace}}
		_ = o.cluster.Delete(context.WithoutCancel(ctx), n)
	}
	return err
}

// namespaceState says where the traffic-manager's namespace comes from.
type namespaceState struct {
	created bool // this command has created it
	own     bool // this command or an earlier one has created it
}

// ensureNamespace creates the namespace if it does not exist.
func (o *installOptions) ensureNamespace(ctx context.Context) (namespaceState, error) {
	waiting, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if err := awaitNamespaceEnd(waiting, o.cluster, o.namespace, o.ErrOut); err != nil {
		return namespaceState{}, err
	}
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.namespace, Labels: map[string]string{
		createdLabel:                         "true",
		"pod-security.kubernetes.io/enforce": "restricted",
	}}}
	err := o.cluster.Create(ctx, n)
	if !apierrors.IsAlreadyExists(err) {
		return namespaceState{created: err == nil, own: err == nil}, err
	}
	if err := o.cluster.Get(ctx, client.ObjectKeyFromObject(n), n); err != nil {
		return namespaceState{}, err
	}
	return namespaceState{own: n.Labels[createdLabel] == "true"}, nil
}
