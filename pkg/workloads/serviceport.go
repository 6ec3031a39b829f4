package workloads

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ServicePort returns one of these errors, by errors.Is, when it cannot choose a port.
var (
	ErrPortNotFound  = errors.New("the service has no such port")
	ErrPortAmbiguous = errors.New("several ports of the service match")
)

// portError is a sentence for the user that counts as one of the errors above.
type portError struct {
	kind error
	text string
}

func (e *portError) Error() string { return e.text }
func (e *portError) Unwrap() error { return e.kind }

// ServicePort picks a port of a service by name or number, and by protocol where one is given. A
// service with one port needs neither: want may be nil and protocol empty. The error is a sentence
// for the user.
func ServicePort(svc *corev1.Service, want *intstr.IntOrString, protocol corev1.Protocol) (corev1.ServicePort, error) {
	if len(svc.Spec.Ports) == 0 { // a headless service or one of type ExternalName may have no port
		return corev1.ServicePort{}, &portError{
			kind: ErrPortNotFound,
			text: fmt.Sprintf("service %s has no ports: there is nothing to intercept", svc.Name),
		}
	}
	var found []corev1.ServicePort
	for _, p := range svc.Spec.Ports {
		if matchesPort(p, want) && (protocol == "" || protocol == cmp.Or(p.Protocol, corev1.ProtocolTCP)) {
			found = append(found, p)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return corev1.ServicePort{}, choicePortError(svc, want, protocol, found)
}

func matchesPort(p corev1.ServicePort, want *intstr.IntOrString) bool {
	switch {
	case want == nil:
		return true
	case want.Type == intstr.String:
		return p.Name == want.StrVal
	}
	return p.Port == want.IntVal
}

// choicePortError explains why not exactly one of a service's ports was found.
func choicePortError(
	svc *corev1.Service, want *intstr.IntOrString, protocol corev1.Protocol, found []corev1.ServicePort,
) error {
	ports := describePorts(svc.Spec.Ports)
	switch {
	case len(found) > 1 && want == nil:
		return &portError{
			kind: ErrPortAmbiguous,
			text: fmt.Sprintf("service %s has several ports, %s: say which one, as in --port 8080:%d",
				svc.Name, ports, found[0].Port),
		}
	case len(found) > 1:
		example := strings.ToLower(string(cmp.Or(found[0].Protocol, corev1.ProtocolTCP)))
		return &portError{
			kind: ErrPortAmbiguous,
			text: fmt.Sprintf("service %s has port %s for several protocols, %s: "+
				"say which one, as in --port 8080:%s/%s",
				svc.Name, want.String(), ports, want.String(), example),
		}
	}
	name := "for " + string(protocol)
	if want != nil {
		name = want.String()
		if protocol != "" {
			name += "/" + string(protocol)
		}
	}
	return &portError{
		kind: ErrPortNotFound,
		text: fmt.Sprintf("service %s has no port %s: it has %s", svc.Name, name, ports),
	}
}

// describePorts lists ports for people, such as "80 (http), 53/UDP (dns)".
func describePorts(ports []corev1.ServicePort) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = fmt.Sprint(p.Port)
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			texts[i] += "/" + string(p.Protocol)
		}
		if p.Name != "" {
			texts[i] += " (" + p.Name + ")"
		}
	}
	return strings.Join(texts, ", ")
}
