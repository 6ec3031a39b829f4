package workloads

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func portNumber(n int32) *intstr.IntOrString {
	v := intstr.FromInt32(n)
	return &v
}

func portName(s string) *intstr.IntOrString {
	v := intstr.FromString(s)
	return &v
}

func TestServicePort(t *testing.T) {
	http := corev1.ServicePort{Name: "http", Port: 80}
	grpc := corev1.ServicePort{Name: "grpc", Port: 9090}
	unnamed := corev1.ServicePort{Port: 8080}
	digits := corev1.ServicePort{Name: "8080", Port: 81}
	dnsUDP := corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}
	dnsTCP := corev1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP}
	for _, c := range []struct {
		name     string
		ports    []corev1.ServicePort
		port     *intstr.IntOrString
		protocol corev1.Protocol
		want     corev1.ServicePort
		kind     error
		message  string
	}{
		{name: "by number", ports: []corev1.ServicePort{http, grpc}, port: portNumber(9090), want: grpc},
		{name: "by name", ports: []corev1.ServicePort{http, grpc}, port: portName("http"), want: http},
		{name: "the only port needs no name", ports: []corev1.ServicePort{unnamed}, want: unnamed},
		{
			name:  "a name of digits is a name",
			ports: []corev1.ServicePort{digits, unnamed},
			port:  portName("8080"),
			want:  digits,
		},
		{
			name:  "a number is not a name of digits",
			ports: []corev1.ServicePort{digits, unnamed},
			port:  portNumber(8080),
			want:  unnamed,
		},
		{
			name: "several ports and no choice", ports: []corev1.ServicePort{http, grpc},
			kind:    ErrPortAmbiguous,
			message: "service catalog has several ports, 80 (http), 9090 (grpc): say which one, as in --port 8080:80",
		},
		{
			name: "unknown number", ports: []corev1.ServicePort{http, unnamed}, port: portNumber(81),
			kind: ErrPortNotFound, message: "service catalog has no port 81: it has 80 (http), 8080",
		},
		{
			name: "unknown name", ports: []corev1.ServicePort{http}, port: portName("web"),
			kind: ErrPortNotFound, message: "service catalog has no port web: it has 80 (http)",
		},
		{
			name: "no ports and no choice",
			kind: ErrPortNotFound, message: "service catalog has no ports: there is nothing to intercept",
		},
		{
			name: "no ports and a choice", port: portNumber(80),
			kind: ErrPortNotFound, message: "service catalog has no ports: there is nothing to intercept",
		},
		{
			name:     "number and TCP",
			ports:    []corev1.ServicePort{dnsUDP, dnsTCP},
			port:     portNumber(53),
			protocol: corev1.ProtocolTCP,
			want:     dnsTCP,
		},
		{
			name:     "number and UDP",
			ports:    []corev1.ServicePort{dnsUDP, dnsTCP},
			port:     portNumber(53),
			protocol: corev1.ProtocolUDP,
			want:     dnsUDP,
		},
		{name: "name of a UDP port", ports: []corev1.ServicePort{dnsUDP, dnsTCP}, port: portName("dns"), want: dnsUDP},
		{name: "the only port is UDP", ports: []corev1.ServicePort{dnsUDP}, want: dnsUDP},
		{
			name:     "the only UDP port",
			ports:    []corev1.ServicePort{dnsUDP, dnsTCP},
			protocol: corev1.ProtocolUDP,
			want:     dnsUDP,
		},
		{
			name: "a number of two protocols", ports: []corev1.ServicePort{dnsUDP, dnsTCP}, port: portNumber(53),
			kind: ErrPortAmbiguous,
			message: "service catalog has port 53 for several protocols, 53/UDP (dns), 53 (dns-tcp): " +
				"say which one, as in --port 8080:53/udp",
		},
		{
			name:     "a number of the other protocol",
			ports:    []corev1.ServicePort{dnsTCP},
			port:     portNumber(53),
			protocol: corev1.ProtocolUDP,
			kind:     ErrPortNotFound, message: "service catalog has no port 53/UDP: it has 53 (dns-tcp)",
		},
		{
			name: "no port of the protocol", ports: []corev1.ServicePort{dnsTCP}, protocol: corev1.ProtocolUDP,
			kind: ErrPortNotFound, message: "service catalog has no port for UDP: it has 53 (dns-tcp)",
		},
		{
			name:     "a name of the other protocol",
			ports:    []corev1.ServicePort{dnsUDP, dnsTCP},
			port:     portName("dns"),
			protocol: corev1.ProtocolTCP,
			kind:     ErrPortNotFound,
			message:  "service catalog has no port dns/TCP: it has 53/UDP (dns), 53 (dns-tcp)",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			svc := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: "catalog"},
				Spec:       corev1.ServiceSpec{Ports: c.ports},
			}
			got, err := ServicePort(svc, c.port, c.protocol)
			assert.Equal(t, c.want, got)
			if c.kind == nil {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.message)
			require.ErrorIs(t, err, c.kind)
		})
	}
}
