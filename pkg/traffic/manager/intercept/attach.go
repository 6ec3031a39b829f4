package intercept

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

// withoutAttach is the advice to a user whose intercept cannot attach.
const withoutAttach = "leave out --attach, so that new pods with the agent are rolled out"

// attachment is an agent that is to be attached to running pods: pods that are new, and pods whose
// agent has ended because it was not needed. One agent serves all ports of the session's intercepts
// of the service.
type attachment struct {
	pods  []client.ObjectKey
	ports []inject.Port
}

// checkAttach refuses a port that an attached agent cannot serve.
func (w *workload) checkAttach() error {
	switch {
	case w.port.Protocol != "":
		return refuse(detour.ReasonUnsupported,
			"port %d of %s is a %s port, and an attached agent can take over TCP ports only: %s",
			w.port.Port, w.Name(), w.port.Protocol, withoutAttach)
	case w.port.Secret != "":
		return refuse(detour.ReasonUnsupported, "a running pod cannot get the volume with the Secret %s: %s",
			w.port.Secret, withoutAttach)
	}
	return nil
}

func attachable(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning
}

// attach attaches an agent to each of the pods. If the cluster does not allow that, the error is a
// Refusal, and the pods after the refused one are not tried.
func (r *Reconciler) attach(ctx context.Context, a *attachment) error {
	for _, pod := range a.pods {
		if err := r.attachTo(ctx, pod, a.ports); err != nil {
			return err
		}
	}
	return nil
}

// attachTo puts one agent in front of those of the ports that have none.
func (r *Reconciler) attachTo(ctx context.Context, key client.ObjectKey, ports []inject.Port) error {
	// Without the cache, which may not know yet what was attached a moment ago.
	var pod corev1.Pod
	if err := r.config.Reader.Get(ctx, key, &pod); err != nil {
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
	container, err := inject.Attach(&pod, missing, r.config.Inject)
	if err != nil {
		return refuse(detour.ReasonUnsupported, "%s: %s", err, withoutAttach)
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []any{container}}})
	if err != nil {
		return fmt.Errorf("encode the ephemeral container: %w", err)
	}
	err = r.SubResource("ephemeralcontainers").Patch(ctx, &pod, client.RawPatch(types.StrategicMergePatchType, patch))
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return attachError(&pod, err)
	}
	r.config.Log.Info("attached the agent",
		"namespace", pod.Namespace, "pod", pod.Name, "container", container.Name, "ports", missing)
	return nil
}

// attachError explains why the API server did not take the ephemeral container.
func attachError(pod *corev1.Pod, err error) error {
	// RBAC says it in these words, and admission in others.
	const byRBAC = `cannot patch resource "pods/ephemeralcontainers"`
	switch {
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), byRBAC):
		return refuse(detour.ReasonUnsupported, "the traffic-manager may not attach agents to running pods here, "+
			"which the chart's value attach turns off: %s", withoutAttach)
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err):
		return refuse(detour.ReasonUnsupported,
			"the cluster does not let the agent be attached, which needs the capability NET_ADMIN (%s): %s",
			err, withoutAttach)
	}
	return fmt.Errorf("attach the agent to pod %s: %w", pod.Name, err)
}
