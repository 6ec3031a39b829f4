package intercept

import (
	"slices"
	"strings"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// checkTLS refuses an intercept whose agents could not read the requests of a TLS port: the Secret
// that is given is not one of the pods', or none is given although the service or a probe declares
// that the port speaks TLS. Without the refusal such an intercept would get everything, or silently
// nothing.
func (w *workload) checkTLS(i *detour.Intercept, plan inject.Plan, byRequest bool) error {
	secrets := inject.SecretsOf(&w.Template.Spec)
	secret := ""
	if i.Spec.TLS != nil {
		if secret = i.Spec.TLS.Secret; !slices.Contains(secrets, secret) {
			return refuse(detour.ReasonTLS,
				"the pods of %s do not use Secret %s: name one that they use, with their certificate, by --tls-secret%s",
				w.Name(), secret, listSecrets(secrets))
		}
	}
	port := w.port
	port.Secret = secret
	evidence := inject.TLSEvidence(w.appProtocol, w.Template, port)
	if byRequest && evidence != "" && secret == "" && plan.SecretOf(port) == "" {
		return w.refuseWithoutSecret(evidence)
	}
	return nil
}

// refuseTLS refuses an intercept because of what its agents found out about the port.
func (w *workload) refuseTLS(found *agentv1.PortState) error {
	if found.Problem == "" {
		return w.refuseWithoutSecret("the agent tried it")
	}
	return refuse(detour.ReasonTLS, "the agent cannot read the requests to port %d of %s: %s",
		w.port.Port, w.Name(), found.Problem)
}

func (w *workload) refuseWithoutSecret(evidence string) error {
	return refuse(detour.ReasonTLS, "port %d of %s speaks TLS (%s): to select requests, "+
		"name the Secret with its certificate by --tls-secret NAME%s, or intercept the whole port, without conditions",
		w.port.Port, w.Name(), evidence, listSecrets(inject.SecretsOf(&w.Template.Spec)))
}

func listSecrets(secrets []string) string {
	if len(secrets) == 0 {
		return " (the pods use none)"
	}
	return " (the pods use " + strings.Join(secrets, ", ") + ")"
}
