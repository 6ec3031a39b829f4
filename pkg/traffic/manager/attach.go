package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
)

const leaveOut = "leave out --attach, so that new pods with the agent are rolled out"

// attach puts the agent into those running pods that have none before the port: pods that are new, and those whose agent ended because it
// was not needed. One agent takes all ports that the session's intercepts of the service need.
func (r *interceptReconciler) attach(ctx context.Context, i *detour.Intercept, target *workload, plan inject.Plan, pods []corev1.Pod) error {
	switch {
	case target.port.Protocol != "":
		return refuse(detour.ReasonUnsupported, "port %d of %s is %s, and only TCP ports can be taken over in running pods: %s", target.port.Port, target.Name(), target.port.Protocol, leaveOut)
	case target.port.Secret != "":
		return refuse(detour.ReasonUnsupported, "a running pod cannot get the volume with the Secret %s: %s", target.port.Secret, leaveOut)
	}
	ports := []inject.Port{target.port}
	for _, p := range r.siblings(ctx, i, target, plan) {
		if p.Protocol == "" && p.Secret == "" {
			ports = append(ports, p)
		}
	}
	for n := range pods {
		if attachable(&pods[n]) && !inject.HasAgent(&pods[n], target.port) {
			if err := r.attachTo(ctx, client.ObjectKeyFromObject(&pods[n]), ports); err != nil {
				return err
			}
		}
	}
	return nil
}

func attachable(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning
}

// attachTo puts one agent before those of the ports that have none.
func (r *interceptReconciler) attachTo(ctx context.Context, key client.ObjectKey, ports []inject.Port) error {
	// Past the cache, which may not know yet what was attached a moment ago.
	var pod corev1.Pod
	if err := r.reader.Get(ctx, key, &pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	var missing []int32
	for _, p := range ports {
		if !inject.HasAgent(&pod, p) && !slices.Contains(missing, p.Port) {
			missing = append(missing, p.Port)
		}
	}
	if !attachable(&pod) || len(missing) == 0 {
		return nil
	}
	container, err := inject.Attach(&pod, missing, r.inject)
	if err != nil {
		return refuse(detour.ReasonUnsupported, "%s: %s", err, leaveOut)
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []any{container}}})
	if err != nil {
		return fmt.Errorf("encode the ephemeral container: %w", err)
	}
	err = r.SubResource("ephemeralcontainers").Patch(ctx, &pod, client.RawPatch(types.StrategicMergePatchType, patch))
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), `cannot patch resource "pods/ephemeralcontainers"`): // as RBAC says it, and no admission
		return refuse(detour.ReasonUnsupported, "the traffic-manager may not attach agents to running pods here, which the chart's value attach turns off: %s", leaveOut)
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err):
		return refuse(detour.ReasonUnsupported, "the cluster does not let the agent be attached, which needs the capability NET_ADMIN (%s): %s", err, leaveOut)
	case err != nil:
		return fmt.Errorf("attach the agent to pod %s: %w", pod.Name, err)
	}
	r.options.Log.Info("attached the agent", "namespace", pod.Namespace, "pod", pod.Name, "container", container.Name, "ports", missing)
	return nil
}
