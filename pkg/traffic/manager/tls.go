package manager

import (
	"slices"
	"strings"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// setSecret puts the Secret with which agents look into TLS into the port that the intercept needs. It refuses to tell requests apart where
// the cluster's objects have it that this takes a Secret and there is none: nobody gets everything instead, nor nothing in silence.
func (w *workload) setSecret(i *detour.Intercept, plan inject.Plan, byRequest bool) error {
	own := inject.SecretsOf(&w.Template.Spec)
	if i.Spec.TLS != nil {
		if !slices.Contains(own, i.Spec.TLS.Secret) {
			return refuse(detour.ReasonTLS, "the pods of %s do not use Secret %s themselves: --tls-secret has to name the one with their certificate%s", w.Name(), i.Spec.TLS.Secret, among(own))
		}
		w.port.Secret = i.Spec.TLS.Secret
	}
	if says := inject.TLSEvidence(w.appProtocol, w.Template, w.port); byRequest && says != "" && w.port.Secret == "" && plan.SecretOf(w.port) == "" {
		return w.needsSecret(says)
	}
	return nil
}

// refuseTLS says why what agents have found keeps them from telling requests apart.
func (w *workload) refuseTLS(found *agentv1.PortState) error {
	if found.Problem == "" {
		return w.needsSecret("found by trying")
	}
	return refuse(detour.ReasonTLS, "requests to port %d of %s cannot be told apart: %s", w.port.Port, w.Name(), found.Problem)
}

func (w *workload) needsSecret(how string) error {
	return refuse(detour.ReasonTLS, "port %d of %s speaks TLS (%s): to tell requests apart name the Secret with its certificate, --tls-secret NAME%s, or intercept all of it, without conditions",
		w.port.Port, w.Name(), how, among(inject.SecretsOf(&w.Template.Spec)))
}

func among(secrets []string) string {
	if len(secrets) == 0 {
		return " (the pods use none)"
	}
	return " (the pods use " + strings.Join(secrets, ", ") + ")"
}
