package install

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"helm.sh/helm/v4/pkg/action"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
)

const (
	// Namespace is the default namespace of the traffic-manager.
	Namespace = "detour-system"
	// createdLabel marks a namespace that install has created, and that uninstall may delete.
	createdLabel = "detour.dev/created"
	// Helm annotates every object of a release with these.
	releaseNameAnnotation      = "meta.helm.sh/release-name"
	releaseNamespaceAnnotation = "meta.helm.sh/release-namespace"
)

// Printer is the -o flag of the command line.
type Printer interface {
	AddFlags(*pflag.FlagSet)
	Validate() error
	// Print prints value in the format of the flag. For text it calls text.
	Print(value any, text func(io.Writer)) error
}

// commonOptions are what install and uninstall share.
type commonOptions struct {
	genericiooptions.IOStreams
	kubeconfig *genericclioptions.ConfigFlags
	printer    Printer
	namespace  string
	timeout    time.Duration
	cluster    *cluster // connect sets it
}

// addFlags adds the flags that both commands have.
func (o *commonOptions) addFlags(cmd *cobra.Command, timeout time.Duration, timeoutUsage string) {
	o.printer.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&o.namespace, "manager-namespace", Namespace, "namespace of the traffic-manager")
	cmd.Flags().DurationVar(&o.timeout, "timeout", timeout, timeoutUsage)
}

func (o *commonOptions) validate() error {
	if err := o.printer.Validate(); err != nil {
		return err
	}
	if err := explain.Name("--manager-namespace", o.namespace); err != nil {
		return err
	}
	if o.timeout <= 0 {
		return fmt.Errorf("--timeout %s is not positive: write for example --timeout 5m", o.timeout)
	}
	return nil
}

// cluster is the access to a cluster.
type cluster struct {
	client.Client
	api    rest.Interface
	server string // URL of the API server
}

// connect reads the kubeconfig. It does not ask the API server yet.
func (o *commonOptions) connect() error {
	loaded, err := kubeconfig.Load(o.kubeconfig)
	if err != nil {
		return err
	}
	o.cluster = &cluster{server: loaded.Config.Host}
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), detour.AddToScheme(types)); err != nil {
		return err
	}
	if o.cluster.Client, err = client.New(loaded.Config, client.Options{Scheme: types}); err != nil {
		return o.explained(err, "connect to the cluster")
	}
	api, err := discovery.NewDiscoveryClientForConfig(loaded.Config)
	if err != nil {
		return o.explained(err, "connect to the cluster")
	}
	o.cluster.api = api.RESTClient()
	return nil
}

// explained returns err as a sentence. Installing takes more rights than a developer has.
func (o *commonOptions) explained(err error, doing string) error {
	return explain.Context{Doing: doing, Server: o.cluster.server, Role: explain.RoleAdmin}.Error(err)
}

// helm returns the configuration of Helm for the traffic-manager's namespace.
func (o *commonOptions) helm() (*action.Configuration, error) {
	// Helm takes the namespace of the release from this flag. The release is in the
	// traffic-manager's.
	*o.kubeconfig.Namespace = o.namespace
	config := action.NewConfiguration()
	config.SetLogger(slog.DiscardHandler)
	if err := config.Init(o.kubeconfig, o.namespace, "secret"); err != nil {
		return nil, fmt.Errorf("prepare Helm: %w", err)
	}
	return config, nil
}
