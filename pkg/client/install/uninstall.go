package install

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/storage/driver"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/wellknown"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// UninstallCommand is `detour uninstall`.
func UninstallCommand(streams genericiooptions.IOStreams, flags *genericclioptions.ConfigFlags, out Printer) *cobra.Command {
	o := &options{IOStreams: streams, flags: flags, out: out}
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take everything of detour out of the cluster", Args: cobra.NoArgs,
		Long:    "Ends all intercepts and sessions, rolls the workloads back to pods without the traffic-agent, and removes the traffic-manager, its webhook, roles and custom resources.",
		Example: "  detour uninstall",
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), o.uninstall) },
	}
	out.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&o.namespace, "manager-namespace", Namespace, "namespace of the traffic-manager")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait for the workloads' rollouts")
	return cmd
}

func (o *options) uninstall(ctx context.Context) error {
	config, clients, err := o.load()
	if err != nil {
		return err
	}
	s := scheme.Scheme
	if err := detour.AddToScheme(s); err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: s})
	if err != nil {
		return o.explained(err, "reach the cluster")
	}
	if err := o.installedHere(ctx, clients); err != nil {
		return err
	}
	if err := o.endSessions(ctx, c); err != nil {
		return o.explained(err, "end the sessions")
	}
	if err := o.removeAgents(ctx, clients); err != nil {
		return err
	}
	*o.flags.Namespace = o.namespace
	helm, err := o.configuration()
	if err != nil {
		return err
	}
	remove := action.NewUninstall(helm)
	remove.WaitStrategy, remove.Timeout, remove.DeletionPropagation = kube.StatusWatcherStrategy, o.timeout, "foreground"
	if _, err := remove.Run(wellknown.TrafficManager); errors.Is(err, driver.ErrReleaseNotFound) {
		o.result.Action = "none"
		if err := o.removeOrphans(ctx, c); err != nil {
			return err
		}
	} else if err != nil {
		return o.explained(err, "remove the traffic-manager")
	} else {
		o.result.Action = "removed"
	}
	return o.removeNamespace(ctx, clients)
}

// installedHere refuses a namespace of the traffic-manager that is not the one, before anything is taken away.
func (o *options) installedHere(ctx context.Context, c *kubernetes.Clientset) error {
	config, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, wellknown.Webhook, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return o.explained(err, "look for the traffic-manager")
	}
	where := config.Annotations[releaseNamespace]
	if where == "" || where == o.namespace {
		return nil
	}
	return fmt.Errorf("the traffic-manager is in namespace %s, not %s: run `detour uninstall --manager-namespace %s`", where, o.namespace, where)
}

// removeOrphans removes what of a release is in no namespace and has survived it, as when somebody has deleted the traffic-manager's namespace by hand.
func (o *options) removeOrphans(ctx context.Context, c client.Client) error {
	for _, kind := range []schema.GroupVersionKind{
		{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"},
		{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"},
	} {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(kind)
		if err := c.List(ctx, &list, client.MatchingLabels{"app.kubernetes.io/managed-by": "Helm"}); err != nil {
			return o.explained(err, "look for what is left")
		}
		for i := range list.Items {
			object := &list.Items[i]
			if object.Annotations[releaseName] != wellknown.TrafficManager || object.Annotations[releaseNamespace] != o.namespace {
				continue
			}
			if err := c.Delete(ctx, object); client.IgnoreNotFound(err) != nil {
				return o.explained(err, "delete "+object.Name)
			}
			o.result.Action = "removed"
		}
	}
	return nil
}

func (o *options) endSessions(ctx context.Context, c client.Client) error {
	var sessions detour.SessionList
	var intercepts detour.InterceptList
	for _, list := range []client.ObjectList{&intercepts, &sessions} {
		if err := c.List(ctx, list); meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
	}
	for i := range intercepts.Items {
		if err := c.Delete(ctx, &intercepts.Items[i]); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	for i := range sessions.Items {
		if err := c.Delete(ctx, &sessions.Items[i]); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	o.result.Sessions, o.result.Intercepts = len(sessions.Items), len(intercepts.Items)
	return nil
}

// removeAgents takes the annotation from every workload and waits until no pod carries the agent. Only the namespaced
// leftovers of those rollouts are deleted: ReplicaSets and revisions with the annotation, which nobody can want back.
func (o *options) removeAgents(ctx context.Context, c *kubernetes.Clientset) error {
	patch := []byte(fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{%q:null}}}}}`, inject.Annotation))
	all := metav1.ListOptions{}
	has := func(t corev1.PodTemplateSpec) bool { return t.Annotations[inject.Annotation] != "" }
	deployments, err := c.AppsV1().Deployments("").List(ctx, all)
	if err != nil {
		return o.explained(err, "list the deployments")
	}
	sets, err := c.AppsV1().StatefulSets("").List(ctx, all)
	if err != nil {
		return o.explained(err, "list the stateful sets")
	}
	daemons, err := c.AppsV1().DaemonSets("").List(ctx, all)
	if err != nil {
		return o.explained(err, "list the daemon sets")
	}
	var names []string
	for _, w := range deployments.Items {
		if has(w.Spec.Template) {
			names = append(names, "deployment/"+w.Name)
			if _, err := c.AppsV1().Deployments(w.Namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return o.explained(err, "roll deployment/"+w.Name+" back")
			}
		}
	}
	for _, w := range sets.Items {
		if has(w.Spec.Template) {
			names = append(names, "statefulset/"+w.Name)
			if _, err := c.AppsV1().StatefulSets(w.Namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return o.explained(err, "roll statefulset/"+w.Name+" back")
			}
		}
	}
	for _, w := range daemons.Items {
		if has(w.Spec.Template) {
			names = append(names, "daemonset/"+w.Name)
			if _, err := c.AppsV1().DaemonSets(w.Namespace).Patch(ctx, w.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return o.explained(err, "roll daemonset/"+w.Name+" back")
			}
		}
	}
	rollouts, err := o.restartRollouts(ctx, c)
	if err != nil {
		return err
	}
	names = append(names, rollouts...)
	if len(names) > 0 {
		o.result.Workloads = names
		fmt.Fprintf(o.ErrOut, "rolling out without the traffic-agent: %s\n", strings.Join(names, ", "))
	}
	var left []string
	err = wait.PollUntilContextTimeout(ctx, 500*time.Millisecond, o.timeout, true, func(ctx context.Context) (bool, error) {
		pods, err := c.CoreV1().Pods("").List(ctx, all)
		if err != nil {
			return false, err
		}
		left = carrying(pods.Items)
		return len(left) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("pods with the traffic-agent are still there (%s): see why their rollout does not finish, then run uninstall again: %w", strings.Join(left, ", "), err)
	}
	if err := o.mentionAttached(ctx, c); err != nil {
		return err
	}
	return o.removeHistory(ctx, c)
}

// carrying are the names of those pods that have the agent and will end. One that was evicted has ended, and stays for people to look at.
func carrying(pods []corev1.Pod) (names []string) {
	for i := range pods {
		if p := &pods[i]; p.Annotations[inject.Annotation] != "" && !workloads.PodEnded(p) {
			names = append(names, p.Namespace+"/"+p.Name)
		}
	}
	return names
}

// restartRollouts takes the annotation from Argo's Rollouts.
func (o *options) restartRollouts(ctx context.Context, c *kubernetes.Clientset) ([]string, error) {
	all, err := argo.List(ctx, c.Discovery().RESTClient(), "")
	if err != nil {
		return nil, o.explained(err, "list the rollouts")
	}
	var names []string
	for _, r := range all {
		if r.GetAnnotations()[inject.Annotation] == "" {
			continue
		}
		names = append(names, "rollout/"+r.GetName())
		patch, err := argo.AnnotateAndRestart("", inject.Annotation, nil, time.Now())
		if err != nil {
			return nil, err
		}
		if err := c.Discovery().RESTClient().Patch(types.MergePatchType).AbsPath(argo.Path(r.GetNamespace()), r.GetName()).Body(patch).Do(ctx).Error(); err != nil {
			return nil, o.explained(err, "restart rollout/"+r.GetName())
		}
	}
	return names, nil
}

// mentionAttached says where agents are that were attached to running pods. Without intercepts they redirect nothing, and end when no client
// is connected through them.
func (o *options) mentionAttached(ctx context.Context, c *kubernetes.Clientset) error {
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return o.explained(err, "list the pods")
	}
	var names []string
	for i := range pods.Items {
		if inject.IsAttached(&pods.Items[i]) {
			names = append(names, pods.Items[i].Namespace+"/"+pods.Items[i].Name)
		}
	}
	if len(names) > 0 {
		fmt.Fprintf(o.ErrOut, "attached traffic-agents end by themselves: %s\n", strings.Join(names, ", "))
	}
	return nil
}

func (o *options) removeHistory(ctx context.Context, c *kubernetes.Clientset) error {
	replicaSets, err := c.AppsV1().ReplicaSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return o.explained(err, "list the replica sets")
	}
	for _, r := range replicaSets.Items {
		if r.Spec.Template.Annotations[inject.Annotation] != "" && r.Status.Replicas == 0 {
			if err := c.AppsV1().ReplicaSets(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return o.explained(err, "delete replicaset/"+r.Name)
			}
		}
	}
	revisions, err := c.AppsV1().ControllerRevisions("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return o.explained(err, "list the revisions")
	}
	for _, r := range revisions.Items {
		if strings.Contains(string(r.Data.Raw), inject.Annotation) {
			if err := c.AppsV1().ControllerRevisions(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return o.explained(err, "delete controllerrevision/"+r.Name)
			}
		}
	}
	return nil
}

// removeOwn takes away what the traffic-manager itself has made in a namespace that stays.
func (o *options) removeOwn(ctx context.Context, c *kubernetes.Clientset) error {
	if err := c.CoreV1().Secrets(o.namespace).Delete(ctx, wellknown.KeysSecret, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return o.explained(err, "delete the traffic-manager's keys")
	}
	if err := c.CoordinationV1().Leases(o.namespace).Delete(ctx, wellknown.TrafficManager, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return o.explained(err, "delete the traffic-manager's lease")
	}
	return nil
}

func (o *options) removeNamespace(ctx context.Context, c *kubernetes.Clientset) error {
	ns, err := c.CoreV1().Namespaces().Get(ctx, o.namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return o.explained(err, "look at the namespace "+o.namespace)
	}
	if ns.Labels[createdLabel] != "true" {
		return o.removeOwn(ctx, c)
	}
	if err := c.CoreV1().Namespaces().Delete(ctx, o.namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return o.explained(err, "delete the namespace "+o.namespace)
	}
	err = wait.PollUntilContextTimeout(ctx, 300*time.Millisecond, o.timeout, true, func(ctx context.Context) (bool, error) {
		_, err := c.CoreV1().Namespaces().Get(ctx, o.namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	if err != nil {
		return fmt.Errorf("the namespace %s does not go away: %w", o.namespace, err)
	}
	o.result.NamespaceRemoved = true
	return nil
}
