// Package records answers DNS questions for the services of one namespace as CoreDNS's kubernetes plugin does, from what is known of
// them on the laptop. It knows neither Kubernetes' API nor the network, so that each rule of CoreDNS can be tested by itself. What
// it cannot answer exactly as CoreDNS would, because that depends on other namespaces or on CoreDNS's configuration, it leaves to
// be asked of the cluster.
package records

import (
	"net/netip"
	"strings"
	"sync"
	"time"
)

// None is the cluster IP of a headless service.
const None = "None"

// Port is a port of a service or of its endpoints.
type Port struct {
	Name, Protocol string
	Number         int
}

// noPort stands for the ports of what has none: it has addresses, but no SRV record.
var noPort = []Port{{Number: -1}}

// Service is what DNS needs to know of a service.
type Service struct {
	Name       string
	ClusterIPs []string // None when it is headless
	Ports      []Port
	External   string // the other name of an ExternalName service
	IsExternal bool
}

// Slice is what DNS needs to know of an EndpointSlice.
type Slice struct {
	Name, Service string
	Ports         []Port
	Endpoints     []Endpoint // only those that are ready, or unready ones that are published nevertheless
}

// Endpoint is one backend of a service, in most cases a pod.
type Endpoint struct {
	Hostname  string
	Addresses []string
}

// Zone is what is known of a namespace. It may be read and changed at once.
type Zone struct {
	namespace string
	domain    string // with dots at both ends
	suffix    string // ".<namespace>.svc.<domain>."

	mu       sync.RWMutex
	services map[string]*Service
	byIP     map[netip.Addr]string            // cluster IP to service
	slices   map[string]Slice                 // by name
	backends map[string]map[string][]*backend // service to slice
	serial   uint32
}

// backend is one address of an endpoint.
type backend struct {
	label   string // of the name under its service
	address address
	ports   []Port
}

// address is parsed once and not for each question.
type address struct {
	text string
	ip   netip.Addr // invalid when it is none: no DNS server but CoreDNS can say what becomes of it
}

// New is a namespace without services. domain is the cluster's, as in cluster.local.
func New(domain, namespace string) *Zone {
	domain = "." + strings.Trim(strings.ToLower(domain), ".") + "."
	return &Zone{
		namespace: namespace, domain: domain, suffix: "." + namespace + ".svc" + domain,
		services: map[string]*Service{}, byIP: map[netip.Addr]string{}, slices: map[string]Slice{}, backends: map[string]map[string][]*backend{},
		serial: now(),
	}
}

func now() uint32 { return uint32(time.Now().Unix()) } //nolint:gosec // a serial number wraps around

// SetServices replaces all services.
func (z *Zone) SetServices(all []Service) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.services, z.byIP = map[string]*Service{}, map[netip.Addr]string{}
	for _, s := range all {
		z.putService(s)
	}
	z.serial = now()
}

// PutService adds or changes one.
func (z *Zone) PutService(s Service) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropService(s.Name)
	z.putService(s)
	z.serial = now()
}

// DeleteService forgets one.
func (z *Zone) DeleteService(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropService(name)
	z.serial = now()
}

func (z *Zone) putService(s Service) {
	if len(s.Ports) == 0 {
		s.Ports = noPort
	}
	z.services[s.Name] = &s
	for _, text := range s.ClusterIPs {
		if ip, err := netip.ParseAddr(text); err == nil {
			z.byIP[ip] = s.Name
		}
	}
}

func (z *Zone) dropService(name string) {
	old := z.services[name]
	if old == nil {
		return
	}
	for _, text := range old.ClusterIPs {
		// The address may belong to another service by now: events of two services come in any order.
		if ip, err := netip.ParseAddr(text); err == nil && z.byIP[ip] == name {
			delete(z.byIP, ip)
		}
	}
	delete(z.services, name)
}

// SetSlices replaces all endpoints.
func (z *Zone) SetSlices(all []Slice) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.slices, z.backends = map[string]Slice{}, map[string]map[string][]*backend{}
	for _, s := range all {
		z.putSlice(s)
	}
	z.serial = now()
}

// PutSlice adds or changes endpoints.
func (z *Zone) PutSlice(s Slice) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropSlice(s.Name)
	z.putSlice(s)
	z.serial = now()
}

// DeleteSlice forgets endpoints.
func (z *Zone) DeleteSlice(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropSlice(name)
	z.serial = now()
}

func (z *Zone) putSlice(s Slice) {
	if len(s.Ports) == 0 {
		s.Ports = noPort
	}
	var all []*backend
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			all = append(all, &backend{label: label(e.Hostname, text), address: parse(text), ports: s.Ports})
		}
	}
	z.slices[s.Name] = s
	if z.backends[s.Service] == nil {
		z.backends[s.Service] = map[string][]*backend{}
	}
	z.backends[s.Service][s.Name] = all
}

func (z *Zone) dropSlice(name string) {
	old, ok := z.slices[name]
	if !ok {
		return
	}
	delete(z.slices, name)
	delete(z.backends[old.Service], name)
	if len(z.backends[old.Service]) == 0 {
		delete(z.backends, old.Service)
	}
}

func parse(text string) address {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" {
		return address{text: text}
	}
	return address{text: text, ip: ip.Unmap()}
}

// label is the name of an endpoint under its service: the pod's hostname, or its address in a form that a name can have.
func label(hostname, ip string) string {
	switch {
	case hostname != "":
		return hostname
	case strings.Contains(ip, "."):
		return strings.ReplaceAll(ip, ".", "-")
	case strings.HasSuffix(ip, ":"):
		return strings.ReplaceAll(ip, ":", "-") + "0"
	}
	return strings.ReplaceAll(ip, ":", "-")
}
