package install

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// podPollInterval is how often removeAgents looks whether pods with the agent have ended.
const podPollInterval = 500 * time.Millisecond

// removeAgents rolls every workload back to pods without the traffic-agent, and waits until no pod
// has one. Afterwards it deletes the history that these rollouts leave: ReplicaSets and revisions
// with the agent, to which nobody can want to return.
func (o *uninstallOptions) removeAgents(ctx context.Context) error {
	all, err := workloads.List(ctx, o.cluster, "", argo.Lister(o.cluster.api))
	if err != nil {
		return o.explained(err, "list the workloads")
	}
	for _, w := range workloadsWithAgent(all) {
		if err := o.rollBack(ctx, w); err != nil {
			return o.explained(err, fmt.Sprintf("roll back %s in namespace %s", w.Name(), w.Object.GetNamespace()))
		}
		o.result.Workloads = append(o.result.Workloads, w.Name())
	}
	if len(o.result.Workloads) > 0 {
		fmt.Fprintf(o.ErrOut, "rolling out without the traffic-agent: %s\n", strings.Join(o.result.Workloads, ", "))
	}
	if err := o.awaitPodsWithoutAgent(ctx); err != nil {
		return err
	}
	return o.removeHistory(ctx)
}

// workloadsWithAgent returns the workloads whose new pods get the agent. A Rollout has the
// annotation itself, the other kinds have it in the pod template.
func workloadsWithAgent(all []*workloads.Workload) []*workloads.Workload {
	var found []*workloads.Workload
	for _, w := range all {
		annotations := w.Template.Annotations
		if w.Kind == argo.Kind {
			annotations = w.Object.GetAnnotations()
		}
		if annotations[inject.Annotation] != "" {
			found = append(found, w)
		}
	}
	return found
}

// rollBack removes the annotation from a workload, which replaces its pods.
func (o *uninstallOptions) rollBack(ctx context.Context, w *workloads.Workload) error {
	if w.Kind != argo.Kind {
		patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{%q:null}}}}}`, inject.Annotation)
		return o.cluster.Patch(ctx, w.Object, client.RawPatch(types.StrategicMergePatchType, patch))
	}
	patch, err := argo.AnnotateAndRestart("", inject.Annotation, nil, time.Now())
	if err != nil {
		return err
	}
	path := argo.Path(w.Object.GetNamespace())
	return o.cluster.api.Patch(types.MergePatchType).AbsPath(path, w.Object.GetName()).Body(patch).Do(ctx).Error()
}

// awaitPodsWithoutAgent waits until no pod was created with the agent. It names the pods to which
// an agent was attached: such an agent redirects nothing without intercepts, and ends when no
// client is connected through it.
func (o *uninstallOptions) awaitPodsWithoutAgent(ctx context.Context) error {
	var pods corev1.PodList
	var waitingFor []string
	err := wait.PollUntilContextTimeout(ctx, podPollInterval, o.timeout, true, func(ctx context.Context) (bool, error) {
		if err := o.cluster.List(ctx, &pods); err != nil {
			return false, err
		}
		waitingFor = podsWithAgent(pods.Items)
		return len(waitingFor) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("pods still have the traffic-agent (%s): find out why their rollout does not finish, "+
			"then run `detour uninstall` again: %w", strings.Join(waitingFor, ", "), err)
	}
	if names := podsWithAttachedAgent(pods.Items); len(names) > 0 {
		fmt.Fprintf(o.ErrOut, "attached traffic-agents end by themselves: %s\n", strings.Join(names, ", "))
	}
	return nil
}

// podsWithAgent returns the names of the pods that have the agent and will end. A pod that was
// evicted has ended, and stays so that people can look at it.
func podsWithAgent(pods []corev1.Pod) (names []string) {
	for i := range pods {
		if p := &pods[i]; p.Annotations[inject.Annotation] != "" && !workloads.PodEnded(p) {
			names = append(names, p.Namespace+"/"+p.Name)
		}
	}
	return names
}

// podsWithAttachedAgent returns the names of the running pods to which an agent was attached.
func podsWithAttachedAgent(pods []corev1.Pod) (names []string) {
	for i := range pods {
		if p := &pods[i]; inject.IsAttached(p) {
			names = append(names, p.Namespace+"/"+p.Name)
		}
	}
	return names
}

// removeHistory deletes old ReplicaSets and revisions with the agent.
func (o *uninstallOptions) removeHistory(ctx context.Context) error {
	var replicaSets appsv1.ReplicaSetList
	if err := o.cluster.List(ctx, &replicaSets); err != nil {
		return o.explained(err, "list the replica sets")
	}
	for i := range replicaSets.Items {
		if r := &replicaSets.Items[i]; isOldReplicaSet(r) {
			if err := o.delete(ctx, r); err != nil {
				return o.explained(err, "delete replicaset/"+r.Name)
			}
		}
	}
	var revisions appsv1.ControllerRevisionList
	if err := o.cluster.List(ctx, &revisions); err != nil {
		return o.explained(err, "list the controller revisions")
	}
	for i := range revisions.Items {
		if r := &revisions.Items[i]; strings.Contains(string(r.Data.Raw), inject.Annotation) {
			if err := o.delete(ctx, r); err != nil {
				return o.explained(err, "delete controllerrevision/"+r.Name)
			}
		}
	}
	return nil
}

// isOldReplicaSet reports whether a ReplicaSet makes pods with the agent, and has none any more.
func isOldReplicaSet(r *appsv1.ReplicaSet) bool {
	return r.Spec.Template.Annotations[inject.Annotation] != "" && r.Status.Replicas == 0
}
