package install

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/storage/driver"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/wellknown"
)

// uninstallOptions are the flags of `detour uninstall`.
type uninstallOptions struct {
	commonOptions
	result Result
}

// NewUninstallCommand returns `detour uninstall`. flags are kubectl's, which the root command has
// added.
func NewUninstallCommand(
	streams genericiooptions.IOStreams, flags *genericclioptions.ConfigFlags, printer Printer,
) *cobra.Command {
	o := &uninstallOptions{commonOptions: commonOptions{IOStreams: streams, kubeconfig: flags, printer: printer}}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything of detour from the cluster",
		Args:  cobra.NoArgs,
		Long: `Ends all intercepts and sessions, rolls the workloads back to pods without the traffic-agent, and
removes the traffic-manager, its webhook, roles and custom resources.`,
		Example: "  detour uninstall",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return o.Run(cmd.Context())
		},
	}
	o.addFlags(cmd, 5*time.Minute, "how long to wait for the rollouts of the workloads")
	return cmd
}

// Run removes detour from the cluster. It can be repeated if it fails.
func (o *uninstallOptions) Run(ctx context.Context) error {
	if err := o.connect(); err != nil {
		return err
	}
	o.result = Result{Namespace: o.namespace, Action: actionRemoved}
	if err := o.checkNamespace(ctx); err != nil {
		return err
	}
	if err := o.endSessions(ctx); err != nil {
		return o.explained(err, "end the sessions")
	}
	if err := o.removeAgents(ctx); err != nil {
		return err
	}
	if err := o.removeRelease(ctx); err != nil {
		return err
	}
	if err := o.removeNamespace(ctx); err != nil {
		return err
	}
	return o.printer.Print(o.result, o.result.printText)
}

// checkNamespace fails if the traffic-manager is in another namespace, before anything is removed.
func (o *uninstallOptions) checkNamespace(ctx context.Context) error {
	var webhook admissionv1.MutatingWebhookConfiguration
	err := o.cluster.Get(ctx, client.ObjectKey{Name: wellknown.Webhook}, &webhook)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return o.explained(err, "look for the traffic-manager")
	}
	return checkReleaseNamespace(&webhook, o.namespace)
}

// checkReleaseNamespace fails if an object belongs to a release in another namespace.
func checkReleaseNamespace(object client.Object, namespace string) error {
	actual := object.GetAnnotations()[releaseNamespaceAnnotation]
	if actual == "" || actual == namespace {
		return nil
	}
	return fmt.Errorf("the traffic-manager is in namespace %s, not in %s: run `detour uninstall --manager-namespace "+
		"%s`",
		actual, namespace, actual)
}

// endSessions deletes all intercepts, and then all sessions.
func (o *uninstallOptions) endSessions(ctx context.Context) error {
	var sessions detour.SessionList
	var intercepts detour.InterceptList
	for _, list := range []client.ObjectList{&intercepts, &sessions} {
		if err := o.cluster.List(ctx, list); meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return nil // the cluster does not know these types
		} else if err != nil {
			return err
		}
	}
	for i := range intercepts.Items {
		if err := o.delete(ctx, &intercepts.Items[i]); err != nil {
			return err
		}
	}
	for i := range sessions.Items {
		if err := o.delete(ctx, &sessions.Items[i]); err != nil {
			return err
		}
	}
	o.result.Sessions, o.result.Intercepts = len(sessions.Items), len(intercepts.Items)
	return nil
}

// delete deletes an object that may be gone already.
func (o *uninstallOptions) delete(ctx context.Context, object client.Object) error {
	return client.IgnoreNotFound(o.cluster.Delete(ctx, object))
}

// removeRelease removes the release, or what has outlived it.
func (o *uninstallOptions) removeRelease(ctx context.Context) error {
	helm, err := o.helm()
	if err != nil {
		return err
	}
	remove := action.NewUninstall(helm)
	// LegacyStrategy polls. The status watcher may end its wait while one object's state is still
	// unknown, and then fails because that object "still exists".
	remove.WaitStrategy, remove.Timeout, remove.DeletionPropagation = kube.LegacyStrategy, o.timeout, "foreground"
	if _, err := remove.Run(wellknown.TrafficManager); errors.Is(err, driver.ErrReleaseNotFound) {
		o.result.Action = actionNone
		return o.removeOrphans(ctx)
	} else if err != nil {
		return o.explained(err, "remove the traffic-manager")
	}
	return nil
}

// orphanKinds are the kinds of a release that are in no namespace.
var orphanKinds = []schema.GroupVersionKind{
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"},
	{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"},
}

// removeOrphans removes the objects that outlive a release when somebody deletes the
// traffic-manager's namespace by hand.
func (o *uninstallOptions) removeOrphans(ctx context.Context) error {
	for _, kind := range orphanKinds {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(kind)
		helms := client.MatchingLabels{"app.kubernetes.io/managed-by": "Helm"}
		if err := o.cluster.List(ctx, &list, helms); err != nil {
			return o.explained(err, "look for objects that have outlived the traffic-manager")
		}
		for i := range list.Items {
			object := &list.Items[i]
			if !isOrphan(object, o.namespace) {
				continue
			}
			// A client deletes an object without its type only as Unstructured:
			// CustomResourceDefinition is not in the client's scheme.
			orphan := &unstructured.Unstructured{}
			orphan.SetGroupVersionKind(kind)
			orphan.SetName(object.Name)
			if err := o.delete(ctx, orphan); err != nil {
				return o.explained(err, "delete "+object.Name)
			}
			o.result.Action = actionRemoved
		}
	}
	return nil
}

// isOrphan reports whether an object belongs to the traffic-manager's release in a namespace.
func isOrphan(object client.Object, namespace string) bool {
	a := object.GetAnnotations()
	return a[releaseNameAnnotation] == wellknown.TrafficManager && a[releaseNamespaceAnnotation] == namespace
}

// removeNamespace removes the traffic-manager's namespace if install has created it. Otherwise it
// removes only what the traffic-manager has created there.
func (o *uninstallOptions) removeNamespace(ctx context.Context) error {
	var n corev1.Namespace
	key := client.ObjectKey{Name: o.namespace}
	if err := o.cluster.Get(ctx, key, &n); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return o.explained(err, "read the namespace "+o.namespace)
	}
	if n.Labels[createdLabel] != "true" {
		return o.removeManagerObjects(ctx)
	}
	if err := o.delete(ctx, &n); err != nil {
		return o.explained(err, "delete the namespace "+o.namespace)
	}
	isGone := func(ctx context.Context) (bool, error) {
		return apierrors.IsNotFound(o.cluster.Get(ctx, key, &n)), nil
	}
	err := wait.PollUntilContextTimeout(ctx, namespacePollInterval, o.timeout, true, isGone)
	if err != nil {
		return fmt.Errorf("the namespace %s is still being deleted after %s: "+
			"`kubectl get namespace %s -o yaml` shows what it waits for: %w", o.namespace, o.timeout, o.namespace, err)
	}
	o.result.NamespaceRemoved = true
	return nil
}

// removeManagerObjects removes the objects that the traffic-manager itself creates.
func (o *uninstallOptions) removeManagerObjects(ctx context.Context) error {
	own := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: o.namespace, Name: name} }
	if err := o.delete(ctx, &corev1.Secret{ObjectMeta: own(wellknown.KeysSecret)}); err != nil {
		return o.explained(err, "delete the traffic-manager's keys")
	}
	if err := o.delete(ctx, &coordinationv1.Lease{ObjectMeta: own(wellknown.TrafficManager)}); err != nil {
		return o.explained(err, "delete the traffic-manager's lease")
	}
	return nil
}
