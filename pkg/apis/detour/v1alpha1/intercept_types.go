package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// InterceptSpec asks for the traffic of one port of one service, or (mode Replace) for the work of a workload. Only Suspend may change.
//
// +kubebuilder:validation:XValidation:rule="has(self.match) == has(oldSelf.match) && (!has(self.match) || self.match == oldSelf.match)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="has(self.service) == has(oldSelf.service) && has(self.workload) == has(oldSelf.workload) && (!has(self.workload) || self.workload == oldSelf.workload) && has(self.container) == has(oldSelf.container) && (!has(self.container) || self.container == oldSelf.container)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="has(self.service) != has(self.workload)",message="give service or workload, not both"
// +kubebuilder:validation:XValidation:rule="(has(self.service) && self.mode != 'Ingest') == has(self.localPort) && (has(self.localPort) || !has(self.port))",message="a service's traffic needs a local port, and nothing else has ports"
// +kubebuilder:validation:XValidation:rule="self.mode in ['Replace', 'Ingest'] || (has(self.service) && !has(self.container))",message="workload and container are for the modes Replace and Ingest"
// +kubebuilder:validation:XValidation:rule="!(self.mode in ['Replace', 'Ingest']) || !has(self.match)",message="the modes Replace and Ingest have no match: one takes everything, the other nothing"
// +kubebuilder:validation:XValidation:rule="has(self.attach) == has(oldSelf.attach) && (!has(self.attach) || self.attach == oldSelf.attach)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="!(self.mode in ['Replace', 'Ingest']) || !has(self.attach) || !self.attach",message="only traffic needs an agent in the running pods: the modes Replace and Ingest cannot attach"
// +kubebuilder:validation:XValidation:rule="self.session == oldSelf.session && (!has(self.service) || !has(oldSelf.service) || self.service == oldSelf.service) && (!has(self.localPort) || !has(oldSelf.localPort) || self.localPort == oldSelf.localPort) && self.onFailure == oldSelf.onFailure && self.mode == oldSelf.mode && has(self.ttl) == has(oldSelf.ttl) && (!has(self.ttl) || self.ttl == oldSelf.ttl) && has(self.port) == has(oldSelf.port) && (!has(self.port) || self.port == oldSelf.port)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="has(self.tls) == has(oldSelf.tls) && (!has(self.tls) || self.tls == oldSelf.tls)",message="only suspend can change; delete the intercept and create a new one"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || has(self.match) || self.mode == 'Wiretap'",message="all of a port goes to the laptop as it is, TLS included: give a match, or no tls"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) == has(oldSelf.protocol) && (!has(self.protocol) || self.protocol == oldSelf.protocol)",message="only suspend can change; delete the intercept and create a new one"
type InterceptSpec struct {
	// Session is the name of the Session, in the same namespace, whose laptop gets the traffic.
	// +kubebuilder:validation:MinLength=1
	Session string `json:"session"`
	// Service is the name of the Service in the same namespace whose pods are intercepted.
	// +kubebuilder:validation:MinLength=1
	// +optional
	Service string `json:"service,omitempty"`
	// Workload is what is replaced when no service stands before it, such as a worker that takes its work from a queue.
	// +optional
	Workload *WorkloadRef `json:"workload,omitempty"`
	// Container is the one that is replaced, where the pod has several and the port does not tell.
	// +kubebuilder:validation:MinLength=1
	// +optional
	Container string `json:"container,omitempty"`
	// Port is the service port, by name or number. It may be absent when the service has one port.
	// +optional
	Port *intstr.IntOrString `json:"port,omitempty"`
	// Protocol is that of the port, where the service has the number for both.
	// +kubebuilder:validation:Enum=TCP;UDP
	// +optional
	Protocol corev1.Protocol `json:"protocol,omitempty"`
	// LocalPort is the port on the laptop's 127.0.0.1 where the process listens.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	LocalPort int32 `json:"localPort,omitempty"`
	// Match selects the requests that go to the laptop. When it is absent the intercept is global: everything does.
	// +optional
	Match *Match `json:"match,omitempty"`
	// TLS lets the agents look into a port that speaks it. Needed for a match or a wiretap of such a port; all of it needs none of this.
	// +optional
	TLS *TLS `json:"tls,omitempty"`
	// Mode is what the laptop gets: the traffic (Intercept), a copy of the requests (Wiretap), whose answers nobody sees, or all that
	// the app does (Replace): the app's container does not run meanwhile. With Ingest it gets no traffic, and reads the app's environment.
	// +kubebuilder:default=Intercept
	Mode Mode `json:"mode,omitempty"`
	// Attach puts the agent into the running pods, as an ephemeral container, in place of a rollout that brings it along.
	// +optional
	Attach bool `json:"attach,omitempty"`
	// TTL ends the intercept so long after its creation; it is deleted. Absent: it lives as long as its session.
	// +optional
	TTL *metav1.Duration `json:"ttl,omitempty"`
	// OnFailure says who answers when the laptop cannot: the app (Fallback), or nobody, with an error (Error).
	// +kubebuilder:default=Fallback
	OnFailure OnFailure `json:"onFailure,omitempty"`
	// Suspend gives the traffic back to the cluster without deleting the intercept; `detour leave` sets it first, so that
	// it can wait until every agent has switched before the laptop stops answering.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
}

// TLS is how the agents look into it.
type TLS struct {
	// Secret is one that the pods use themselves, with the app's certificate and key (tls.crt, tls.key). It stays in the pods.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Secret string `json:"secret"`
	// LocalPlaintext sends the requests to the laptop's process without TLS.
	// +optional
	LocalPlaintext bool `json:"localPlaintext,omitempty"`
}

// Mode is what an intercept does with traffic.
//
// +kubebuilder:validation:Enum=Intercept;Wiretap;Replace;Ingest
type Mode string

// The modes.
const (
	ModeIntercept Mode = "Intercept"
	ModeWiretap   Mode = "Wiretap"
	ModeReplace   Mode = "Replace"
	ModeIngest    Mode = "Ingest"
)

// OnFailure is what becomes of traffic whose laptop cannot be had.
//
// +kubebuilder:validation:Enum=Fallback;Error
type OnFailure string

// The ways to fail.
const (
	OnFailureFallback OnFailure = "Fallback"
	OnFailureError    OnFailure = "Error"
)

// Match selects HTTP requests; all that is given must hold.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!(has(self.path) && has(self.pathPrefix))",message="give path or pathPrefix, not both"
type Match struct {
	// User is whose requests these are: the header x-detour-for, or the member "detour" of the W3C header baggage, has this value.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +optional
	User string `json:"user,omitempty"`
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Headers []ValueMatch `json:"headers,omitempty"`
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Query []ValueMatch `json:"query,omitempty"`
	// Methods are HTTP methods, of which a request has one.
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=32
	// +optional
	Methods []string `json:"methods,omitempty"`
	// Path is the whole path.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=2048
	// +optional
	Path string `json:"path,omitempty"`
	// PathPrefix is the path or a beginning of it, in whole segments.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=2048
	// +optional
	PathPrefix string `json:"pathPrefix,omitempty"`
}

// ValueMatch is a condition on a header field or a query parameter.
type ValueMatch struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`
	// +kubebuilder:default=Exact
	Type MatchType `json:"type,omitempty"`
	// +kubebuilder:validation:MaxLength=4096
	// +optional
	Value string `json:"value,omitempty"`
}

// MatchType is how a value is compared.
//
// +kubebuilder:validation:Enum=Exact;Regex;Present
type MatchType string

// The ways to compare.
const (
	MatchExact   MatchType = "Exact"
	MatchRegex   MatchType = "Regex" // of the whole value, RE2 syntax
	MatchPresent MatchType = "Present"
)

// InterceptPhase is the state of an intercept in one word.
type InterceptPhase string

// The phases of an intercept.
const (
	PhasePending    InterceptPhase = "Pending"    // accepted, the workload is getting its agents
	PhaseActive     InterceptPhase = "Active"     // every ready pod of the service sends its traffic to the laptop
	PhaseRefused    InterceptPhase = "Refused"    // cannot be done; the Ready condition says why
	PhaseSuspended  InterceptPhase = "Suspended"  // traffic is back in the cluster, every agent has confirmed
	PhaseSuspending InterceptPhase = "Suspending" // going back to the cluster, some agent has not confirmed yet
	PhaseLaptopGone InterceptPhase = "LaptopGone" // the laptop is not reachable, its traffic goes to the cluster's pods
)

// Reasons of an intercept's Ready condition.
const (
	ReasonActive           = "Active"
	ReasonRollingOut       = "RollingOut"       // pods with the agent are being started
	ReasonWaitingForAgents = "WaitingForAgents" // the agents have not confirmed yet
	ReasonSessionNotFound  = "SessionNotFound"
	ReasonServiceNotFound  = "ServiceNotFound"
	ReasonPortNotFound     = "PortNotFound"
	ReasonPortAmbiguous    = "PortAmbiguous"
	ReasonNoWorkload       = "NoWorkload"     // nothing that can be intercepted backs the service
	ReasonManyWorkloads    = "ManyWorkloads"  // more than one does
	ReasonWhichContainer   = "WhichContainer" // to replace, of several
	ReasonUnsupported      = "Unsupported"    // e.g. UDP port, hostNetwork pods, OnDelete strategy, ExternalName service
	ReasonPortTaken        = "PortTaken"      // the message says who holds it and since when
	ReasonSuspended        = "Suspended"
	ReasonTLS              = "TLS" // the port speaks TLS, and its requests cannot be told apart
)

// WorkloadRef names a workload in the intercept's namespace.
type WorkloadRef struct {
	// Kind is Deployment, StatefulSet, DaemonSet or Rollout (of Argo). In a spec it may be absent where only one workload has the name.
	// +optional
	Kind string `json:"kind,omitempty"`
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// InterceptStatus is what the traffic-manager found and did.
type InterceptStatus struct {
	Phase InterceptPhase `json:"phase,omitempty"`
	// Workload is the workload that backs the service.
	Workload *WorkloadRef `json:"workload,omitempty"`
	// ServicePort is the number of the service's port.
	ServicePort int32 `json:"servicePort,omitempty"`
	// ContainerPort is the number of the port that the app listens on.
	ContainerPort int32 `json:"containerPort,omitempty"`
	// Container is the one that does not run, in mode Replace.
	Container string `json:"container,omitempty"`
	// Protocol is "UDP", or nothing for TCP.
	Protocol corev1.Protocol `json:"protocol,omitempty"`
	// Redirect is how traffic reaches the agent: "targetPort", "nftables" or "attach".
	Redirect string `json:"redirect,omitempty"`
	// Agents is "<confirmed>/<pods>".
	Agents string `json:"agents,omitempty"`
	// Requests says in words which requests go to the laptop.
	Requests string `json:"requests,omitempty"`
	// Dropped is how many requests a wiretap's laptop got no whole copy of, because it did not take it in time.
	Dropped int64 `json:"dropped,omitempty"`
	// Laptop is "user@host" of the session, for the columns.
	Laptop string `json:"laptop,omitempty"`
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Intercept sends the traffic of one service port to a session's laptop, or lets the laptop do a workload's work. It is owned by its Session.
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
