package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// InterceptSpec asks for the traffic of one port of a service or, in mode Replace, for the work of
// a workload. Only Suspend can change.
//
// +kubebuilder:validation:XValidation:rule="has(self.match) == has(oldSelf.match) && (!has(self.match) || self.match == oldSelf.match)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="has(self.service) == has(oldSelf.service) && has(self.workload) == has(oldSelf.workload) && (!has(self.workload) || self.workload == oldSelf.workload) && has(self.container) == has(oldSelf.container) && (!has(self.container) || self.container == oldSelf.container)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="has(self.service) != has(self.workload)",message="give service or workload, not both"
// +kubebuilder:validation:XValidation:rule="(has(self.service) && self.mode != 'Ingest') == has(self.localPort) && (has(self.localPort) || !has(self.port))",message="a service's traffic needs a local port, and nothing else has ports"
// +kubebuilder:validation:XValidation:rule="self.mode in ['Replace', 'Ingest'] || (has(self.service) && !has(self.container))",message="only the modes Replace and Ingest have workload and container"
// +kubebuilder:validation:XValidation:rule="!(self.mode in ['Replace', 'Ingest']) || !has(self.match)",message="the modes Replace and Ingest have no match: Replace takes everything and Ingest takes nothing"
// +kubebuilder:validation:XValidation:rule="has(self.attach) == has(oldSelf.attach) && (!has(self.attach) || self.attach == oldSelf.attach)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="!(self.mode in ['Replace', 'Ingest']) || !has(self.attach) || !self.attach",message="the modes Replace and Ingest cannot attach: an attached agent diverts traffic and nothing else"
// +kubebuilder:validation:XValidation:rule="self.session == oldSelf.session && (!has(self.service) || !has(oldSelf.service) || self.service == oldSelf.service) && (!has(self.localPort) || !has(oldSelf.localPort) || self.localPort == oldSelf.localPort) && self.onFailure == oldSelf.onFailure && self.mode == oldSelf.mode && has(self.ttl) == has(oldSelf.ttl) && (!has(self.ttl) || self.ttl == oldSelf.ttl) && has(self.port) == has(oldSelf.port) && (!has(self.port) || self.port == oldSelf.port)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="has(self.tls) == has(oldSelf.tls) && (!has(self.tls) || self.tls == oldSelf.tls)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || has(self.match) || self.mode == 'Wiretap'",message="without a match the agent does not decrypt: give a match, or leave out tls"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) == has(oldSelf.protocol) && (!has(self.protocol) || self.protocol == oldSelf.protocol)",message="only suspend can change; delete the intercept and create a new one"
type InterceptSpec struct {
	// Session is the name of the Session in the same namespace whose laptop gets the traffic.
	// +kubebuilder:validation:MinLength=1
	Session string `json:"session"`
	// Service is the name of the Service in the same namespace whose pods are intercepted.
	// +kubebuilder:validation:MinLength=1
	// +optional
	Service string `json:"service,omitempty"`
	// Workload is the workload that is replaced, or whose environment is read, if no service leads
	// to it: for example a worker that takes its work from a queue.
	// +optional
	Workload *WorkloadRef `json:"workload,omitempty"`
	// Container is the container that is replaced, or whose environment is read. It is needed if
	// the pod has several containers and the port does not tell which one is meant.
	// +kubebuilder:validation:MinLength=1
	// +optional
	Container string `json:"container,omitempty"`
	// Port is the service port, by name or number. It may be absent if the service has one port.
	// +optional
	Port *intstr.IntOrString `json:"port,omitempty"`
	// Protocol is the protocol of the port. It is needed if the service has the port number for
	// both TCP and UDP.
	// +kubebuilder:validation:Enum=TCP;UDP
	// +optional
	Protocol corev1.Protocol `json:"protocol,omitempty"`
	// LocalPort is the port on the laptop's 127.0.0.1 where the process listens.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	LocalPort int32 `json:"localPort,omitempty"`
	// Match selects the requests that go to the laptop. If it is absent the intercept is global:
	// all traffic of the port goes to the laptop.
	// +optional
	Match *Match `json:"match,omitempty"`
	// TLS lets the agents decrypt the requests of a port that speaks TLS. A match or a wiretap of
	// such a port needs it. A global intercept does not: the laptop gets the encrypted connections.
	// +optional
	TLS *TLS `json:"tls,omitempty"`
	// Mode is what the laptop gets. Intercept: the traffic. Wiretap: copies of the requests; the
	// laptop's answers are discarded. Replace: all work of the app; the app's container does not
	// run meanwhile. Ingest: no traffic, only the app's environment.
	// +kubebuilder:default=Intercept
	Mode Mode `json:"mode,omitempty"`
	// Attach adds the agent to the running pods, as an ephemeral container, instead of rolling out
	// new pods that have it.
	// +optional
	Attach bool `json:"attach,omitempty"`
	// TTL is how long after its creation the intercept is deleted. If it is absent the intercept
	// lives as long as its session.
	// +optional
	TTL *metav1.Duration `json:"ttl,omitempty"`
	// OnFailure is what happens to traffic whose laptop is unreachable. Fallback: the app answers.
	// Error: the client gets an error.
	// +kubebuilder:default=Fallback
	OnFailure OnFailure `json:"onFailure,omitempty"`
	// Suspend gives the traffic back to the cluster without deleting the intercept. `detour leave`
	// sets it first, so that it can wait until every agent has switched before the laptop stops
	// answering.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
}

// TLS is how the agents decrypt a port.
type TLS struct {
	// Secret is the name of a Secret with the app's certificate and key (tls.crt, tls.key). The
	// pods must use it themselves. It stays in the pods.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Secret string `json:"secret"`
	// LocalPlaintext sends the requests to the local process without TLS.
	// +optional
	LocalPlaintext bool `json:"localPlaintext,omitempty"`
}

// Mode is what an intercept gives the laptop.
//
// +kubebuilder:validation:Enum=Intercept;Wiretap;Replace;Ingest
type Mode string

// The modes of an intercept.
const (
	ModeIntercept Mode = "Intercept"
	ModeWiretap   Mode = "Wiretap"
	ModeReplace   Mode = "Replace"
	ModeIngest    Mode = "Ingest"
)

// OnFailure is what happens to traffic whose laptop is unreachable.
//
// +kubebuilder:validation:Enum=Fallback;Error
type OnFailure string

// What can happen to such traffic.
const (
	OnFailureFallback OnFailure = "Fallback"
	OnFailureError    OnFailure = "Error"
)

// Match selects HTTP requests. A request must meet all conditions that are given.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!(has(self.path) && has(self.pathPrefix))",message="give path or pathPrefix, not both"
type Match struct {
	// User selects the requests of one user: the header x-detour-for, or the member "detour" of the
	// W3C header baggage, has this value.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +optional
	User string `json:"user,omitempty"`
	// Headers are conditions on header fields.
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Headers []ValueMatch `json:"headers,omitempty"`
	// Query are conditions on query parameters.
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Query []ValueMatch `json:"query,omitempty"`
	// Methods are HTTP methods. A request must have one of them.
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=32
	// +optional
	Methods []string `json:"methods,omitempty"`
	// Path is the whole path.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=2048
	// +optional
	Path string `json:"path,omitempty"`
	// PathPrefix is the path or its first segments: /api matches /api and /api/v1, but not /apis.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=2048
	// +optional
	PathPrefix string `json:"pathPrefix,omitempty"`
}

// ValueMatch is a condition on a header field or a query parameter.
type ValueMatch struct {
	// Name is the name of the header field or query parameter.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`
	// Type is how the value is compared.
	// +kubebuilder:default=Exact
	Type MatchType `json:"type,omitempty"`
	// Value is the value or the regular expression. It is empty with the type Present.
	// +kubebuilder:validation:MaxLength=4096
	// +optional
	Value string `json:"value,omitempty"`
}

// MatchType is how a condition compares a value.
//
// +kubebuilder:validation:Enum=Exact;Regex;Present
type MatchType string

// The types of a condition.
const (
	MatchExact   MatchType = "Exact"
	MatchRegex   MatchType = "Regex" // matches the whole value, RE2 syntax
	MatchPresent MatchType = "Present"
)

// InterceptPhase is the state of an intercept in one word.
type InterceptPhase string

// The phases of an intercept.
const (
	PhasePending    InterceptPhase = "Pending"    // the pods are getting their agents
	PhaseActive     InterceptPhase = "Active"     // every ready pod sends its traffic to the laptop
	PhaseRefused    InterceptPhase = "Refused"    // impossible; the Ready condition says why
	PhaseSuspended  InterceptPhase = "Suspended"  // the traffic is back in the cluster, and every agent confirmed it
	PhaseSuspending InterceptPhase = "Suspending" // the traffic goes back to the cluster; some agent has not confirmed
	PhaseLaptopGone InterceptPhase = "LaptopGone" // the laptop does not respond
)

// Reasons of an intercept's Ready condition.
const (
	ReasonActive           = "Active"           // every ready pod sends its traffic to the laptop
	ReasonRollingOut       = "RollingOut"       // pods with the agent are starting
	ReasonWaitingForAgents = "WaitingForAgents" // some agents have not confirmed yet
	ReasonSessionNotFound  = "SessionNotFound"  // the Session that the intercept names does not exist
	ReasonServiceNotFound  = "ServiceNotFound"  // the service does not exist in the intercept's namespace
	ReasonPortNotFound     = "PortNotFound"     // the service has no such port
	ReasonPortAmbiguous    = "PortAmbiguous"    // several ports could be meant; the message says how to choose one
	ReasonNoWorkload       = "NoWorkload"       // no workload that can be intercepted is behind the service
	ReasonManyWorkloads    = "ManyWorkloads"    // several workloads are behind the service
	ReasonWhichContainer   = "WhichContainer"   // several containers could be meant
	ReasonUnsupported      = "Unsupported"      // such as hostNetwork pods, strategy OnDelete, ExternalName services
	ReasonPortTaken        = "PortTaken"        // the message says whose intercept has it and since when
	ReasonSuspended        = "Suspended"        // the intercept is suspended: its traffic goes to the cluster
	ReasonTLS              = "TLS"              // the port speaks TLS, and the agents cannot read its requests
)

// WorkloadRef names a workload in the intercept's namespace.
type WorkloadRef struct {
	// Kind is Deployment, StatefulSet, DaemonSet or Rollout (of Argo). In a spec it may be absent
	// if only one workload has the name.
	// +optional
	Kind string `json:"kind,omitempty"`
	// Name is the name of the workload.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// InterceptStatus is what the traffic-manager found out and did.
type InterceptStatus struct {
	// Phase is the state of the intercept in one word.
	Phase InterceptPhase `json:"phase,omitempty"`
	// Workload is the workload behind the service.
	Workload *WorkloadRef `json:"workload,omitempty"`
	// ServicePort is the number of the service's port.
	ServicePort int32 `json:"servicePort,omitempty"`
	// ContainerPort is the number of the port that the app listens on.
	ContainerPort int32 `json:"containerPort,omitempty"`
	// Container is the container that does not run (mode Replace) or whose environment is read
	// (mode Ingest).
	Container string `json:"container,omitempty"`
	// Protocol is "UDP", or empty for TCP.
	Protocol corev1.Protocol `json:"protocol,omitempty"`
	// Redirect is how traffic reaches the agent: "targetPort", "nftables" or "attach".
	Redirect string `json:"redirect,omitempty"`
	// Agents is how many pods have confirmed, and of how many: "2/3".
	Agents string `json:"agents,omitempty"`
	// Requests describes which requests go to the laptop.
	Requests string `json:"requests,omitempty"`
	// Dropped is how many requests the laptop of a wiretap got no complete copy of, because it did
	// not accept the copy in time.
	Dropped int64 `json:"dropped,omitempty"`
	// Laptop is "user@host" of the session.
	Laptop string `json:"laptop,omitempty"`
	// Conditions has the condition Ready, whose message tells the user what happens and why.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Intercept sends the traffic of one service port to a session's laptop, or lets the laptop do a
// workload's work. Its Session owns it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=dint
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.service`
// +kubebuilder:printcolumn:name="Port",type=string,JSONPath=`.spec.port`
// +kubebuilder:printcolumn:name="Workload",type=string,JSONPath=`.status.workload.name`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Requests",type=string,JSONPath=`.status.requests`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Agents",type=string,JSONPath=`.status.agents`
// +kubebuilder:printcolumn:name="Redirect",type=string,JSONPath=`.status.redirect`
// +kubebuilder:printcolumn:name="Dropped",type=integer,JSONPath=`.status.dropped`
// +kubebuilder:printcolumn:name="Laptop",type=string,JSONPath=`.status.laptop`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Intercept struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              InterceptSpec   `json:"spec"`
	Status            InterceptStatus `json:"status,omitempty"`
}

// InterceptList is a list of Intercepts.
//
// +kubebuilder:object:root=true
type InterceptList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Intercept `json:"items"`
}
