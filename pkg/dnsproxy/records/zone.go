// Package records answers DNS questions about the services of one namespace as CoreDNS's kubernetes
// plugin does. It knows neither Kubernetes' API nor the network, so each rule of CoreDNS can be
// tested by itself. Some answers depend on other namespaces or on CoreDNS's configuration: there it
// tells the caller to ask the cluster's DNS. Start with Zone.
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

// noPort replaces an empty list of ports: a service without ports has addresses but no SRV record.
var noPort = []Port{{Number: -1}}

// Service holds the fields of a Service that DNS needs.
type Service struct {
	Name       string
	ClusterIPs []string // None when it is headless
	Ports      []Port
	External   string // the target of an ExternalName service
	IsExternal bool
}

// Slice holds the fields of an EndpointSlice that DNS needs.
type Slice struct {
	Name, Service string
	Ports         []Port
	Endpoints     []Endpoint // the ready ones, and unready ones that the service publishes
}

// Endpoint is one backend of a service, in most cases a pod.
type Endpoint struct {
	Hostname  string
	Addresses []string
}

// Zone holds the services and endpoints of one namespace. Its methods may be called by several
// goroutines.
type Zone struct {
	namespace string
	domain    string // with dots at both ends
	suffix    string // ".<namespace>.svc.<domain>."

	// mu guards the fields below.
	mu       sync.RWMutex
	services map[string]*Service
	byIP     map[netip.Addr]string            // cluster IP to service
	slices   map[string]Slice                 // by name
	backends map[string]map[string][]*backend // service to slice
	serial   uint32
}

// backend is one address of an endpoint.
type backend struct {
	label   string // its label under the name of the service
	address address
	ports   []Port
}

// address is an address, parsed once and not for each question.
type address struct {
	text string
	ip   netip.Addr // invalid if text is not an address: only CoreDNS knows what to answer then
}

// New returns a Zone without services. domain is the cluster's domain, such as cluster.local.
func New(domain, namespace string) *Zone {
	domain = "." + strings.Trim(strings.ToLower(domain), ".") + "."
	return &Zone{
		namespace: namespace, domain: domain, suffix: "." + namespace + ".svc" + domain,
		services: map[string]*Service{},
		byIP:     map[netip.Addr]string{},
		slices:   map[string]Slice{},
		backends: map[string]map[string][]*backend{},
		serial:   now(),
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

// PutService adds or changes a service.
func (z *Zone) PutService(s Service) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropService(s.Name)
	z.putService(s)
	z.serial = now()
}

// DeleteService removes a service.
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
		// The address may belong to another service already: the events of two services arrive in
		// any order.
		if ip, err := netip.ParseAddr(text); err == nil && z.byIP[ip] == name {
			delete(z.byIP, ip)
		}
	}
	delete(z.services, name)
}

// SetSlices replaces all endpoint slices.
func (z *Zone) SetSlices(all []Slice) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.slices, z.backends = map[string]Slice{}, map[string]map[string][]*backend{}
	for _, s := range all {
		z.putSlice(s)
	}
	z.serial = now()
}

// PutSlice adds or changes an endpoint slice.
func (z *Zone) PutSlice(s Slice) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropSlice(s.Name)
	z.putSlice(s)
	z.serial = now()
}

// DeleteSlice removes an endpoint slice.
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

// label returns the label of an endpoint under the name of its service: the pod's hostname, or its
// address with dashes.
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
