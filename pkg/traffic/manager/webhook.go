package manager

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

// injector answers the API server when a pod of an intercepted workload is made.
type injector struct {
	options Options
	ca      []byte
	log     *slog.Logger
	// planOfRollout finds the annotation for a pod of an Argo Rollout, which does not bring it along.
	planOfRollout func(ctx context.Context, namespace string, pod *corev1.Pod) (string, error)
	known         atomic.Bool  // to the API server: the webhook's configuration has the authority
	asked         atomic.Int64 // when it was asked last, Unix time in seconds
}

const (
	bundleInterval = 15 * time.Second
	bundleRetry    = 500 * time.Millisecond
	// bundleWait is how long a traffic-manager is not ready for want of the configuration: the laptops' tunnels do not need it.
	bundleWait = 10 * time.Second
)

func (i *injector) setup(mgr ctrl.Manager) {
	mgr.GetWebhookServer().Register("/inject", &webhook.Admission{Handler: i})
}

// Handle implements admission.Handler. It never refuses a pod: one without an agent is better than none.
func (i *injector) Handle(ctx context.Context, req admission.Request) admission.Response {
	i.asked.Store(time.Now().Unix())
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	plan, err := i.plan(ctx, req.Namespace, &pod)
	if err == nil {
		err = inject.Mutate(&pod, plan, i.options.agent(i.ca))
	}
	if err != nil {
		i.log.Warn("a pod is made without the agent", "namespace", req.Namespace, "pod", pod.GenerateName, "err", err)
		return admission.Allowed("")
	}
	mutated, err := json.Marshal(&pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, mutated)
}

// plan is what a pod's annotation says, after it was given that of its Rollout. One of the pod's own may be left of the time when a Deployment
// had pods whose template the Rollout has now.
func (i *injector) plan(ctx context.Context, namespace string, pod *corev1.Pod) (inject.Plan, error) {
	text, err := i.planOfRollout(ctx, namespace, pod)
	if err != nil {
		return inject.Plan{}, err
	}
	if text != "" {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, inject.Annotation, text)
	}
	return inject.ParsePlan(pod.Annotations[inject.Annotation])
}

// keepBundle keeps the manager's authority in the webhook's configuration. At an installation that may be made after the manager began.
func (i *injector) keepBundle(ctx context.Context, c client.Client) error {
	began := time.Now()
	for {
		err := i.setBundle(ctx, c)
		again := bundleInterval
		switch {
		case err == nil:
			i.known.Store(true)
		case i.known.Load() || time.Since(began) > bundleWait:
			i.log.Warn("giving the webhook its authority failed", "err", err)
		default:
			i.log.Info("the webhook has no authority yet", "err", err)
			again = bundleRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		}
	}
}

// checker is the probe for it: who is told that the manager is ready makes an intercept at once, and the API server makes pods without the
// agent where it cannot believe the webhook.
func (i *injector) checker(started time.Time) healthz.Checker {
	return func(*http.Request) error {
		if i.known.Load() || time.Since(started) > bundleWait {
			return nil
		}
		return errors.New("the API server does not know the webhook's authority yet")
	}
}

func (i *injector) setBundle(ctx context.Context, c client.Client) error {
	var config admissionregistrationv1.MutatingWebhookConfiguration
	if err := c.Get(ctx, client.ObjectKey{Name: wellknown.Webhook}, &config); err != nil {
		return err
	}
	changed := false
	for n := range config.Webhooks {
		if !bytes.Equal(config.Webhooks[n].ClientConfig.CABundle, i.ca) {
			config.Webhooks[n].ClientConfig.CABundle = i.ca
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return c.Update(ctx, &config)
}
