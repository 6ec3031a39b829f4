// Package webhook is the traffic-manager's mutating admission webhook: it adds the traffic-agent to
// the pods of intercepted workloads when they are created. Start with Injector.
package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/wellknown"
)

const (
	// bundleInterval is how often the configuration is checked.
	bundleInterval = 15 * time.Second
	// bundleRetry is how often it is checked while a new manager waits for it.
	bundleRetry = 500 * time.Millisecond
	// bundleWait is how long a new manager waits for the configuration before it counts as ready
	// without it: the laptops' tunnels do not need the webhook.
	bundleWait = 10 * time.Second
)

// PlanOfRollout returns the annotation for a pod of an Argo Rollout, which a pod's template does
// not carry. It is empty for the pods of other workloads.
type PlanOfRollout func(ctx context.Context, namespace string, pod *corev1.Pod) (string, error)

// Injector answers the API server when a pod of an intercepted workload is created. Make one with
// New.
type Injector struct {
	agent         inject.Options
	planOfRollout PlanOfRollout
	log           *slog.Logger

	started        time.Time
	authorityKnown atomic.Bool  // the webhook's configuration has the manager's authority
	lastCall       atomic.Int64 // when the API server last called, Unix time in seconds
}

// New returns an Injector that adds agents with the given options. It answers nothing before
// Register.
func New(agent inject.Options, planOfRollout PlanOfRollout, log *slog.Logger) *Injector {
	return &Injector{
		agent: agent, planOfRollout: planOfRollout, log: log.With("component", "webhook"), started: time.Now(),
	}
}

// Register makes a webhook server serve the injector.
func (i *Injector) Register(mgr ctrl.Manager) {
	mgr.GetWebhookServer().Register("/inject", &webhook.Admission{Handler: i})
}

// LastCall returns when the API server last called the webhook, in whole seconds. It is the Unix
// epoch if the API server never has.
func (i *Injector) LastCall() time.Time { return time.Unix(i.lastCall.Load(), 0) }

// Handle implements admission.Handler. It never refuses a pod: a pod without an agent is better
// than no pod.
func (i *Injector) Handle(ctx context.Context, req admission.Request) admission.Response {
	i.lastCall.Store(time.Now().Unix())
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	plan, err := i.plan(ctx, req.Namespace, &pod)
	if err == nil {
		err = inject.Mutate(&pod, plan, i.agent)
	}
	if err != nil {
		i.log.Warn("creating a pod without the agent", "namespace", req.Namespace, "pod", pod.GenerateName, "err", err)
		return admission.Allowed("")
	}
	mutated, err := json.Marshal(&pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, mutated)
}

// plan returns what a pod's annotation asks for. It first gives a Rollout's pod the annotation of
// its Rollout, in place of one that the pod's template may still have from the time when the
// template was that of a Deployment with pods.
func (i *Injector) plan(ctx context.Context, namespace string, pod *corev1.Pod) (inject.Plan, error) {
	text, err := i.planOfRollout(ctx, namespace, pod)
	if err != nil {
		return inject.Plan{}, err
	}
	if text != "" {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, inject.Annotation, text)
	}
	return inject.ParsePlan(pod.Annotations[inject.Annotation])
}

// MaintainAuthority keeps the manager's authority in the webhook's configuration until ctx ends.
// During an installation the configuration may be created after the manager has started.
func (i *Injector) MaintainAuthority(ctx context.Context, c client.Client) error {
	for {
		err := i.writeAuthority(ctx, c)
		pause := bundleInterval
		switch {
		case err == nil:
			i.authorityKnown.Store(true)
		case i.authorityKnown.Load() || time.Since(i.started) > bundleWait:
			i.log.Warn("writing the authority into the webhook's configuration failed", "err", err)
		default:
			i.log.Info("the webhook has no authority yet", "err", err)
			pause = bundleRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// Ready is a readiness check. It fails until the API server knows the manager's authority: before
// that it cannot verify the webhook and creates pods without the agent, and whoever sees a ready
// manager may create an intercept at once.
func (i *Injector) Ready() healthz.Checker {
	return func(*http.Request) error {
		if i.authorityKnown.Load() || time.Since(i.started) > bundleWait {
			return nil
		}
		return errors.New("the API server does not know the webhook's authority yet")
	}
}

func (i *Injector) writeAuthority(ctx context.Context, c client.Client) error {
	var config admissionregistrationv1.MutatingWebhookConfiguration
	if err := c.Get(ctx, client.ObjectKey{Name: wellknown.Webhook}, &config); err != nil {
		return err
	}
	changed := false
	for n := range config.Webhooks {
		if !bytes.Equal(config.Webhooks[n].ClientConfig.CABundle, i.agent.CA) {
			config.Webhooks[n].ClientConfig.CABundle = i.agent.CA
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return c.Update(ctx, &config)
}
