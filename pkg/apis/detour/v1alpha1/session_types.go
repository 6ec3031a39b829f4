package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SessionSpec is what the laptop says about itself. It never changes: a new daemon creates a new
// Session.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a session's spec cannot change; create a new session"
type SessionSpec struct {
	// PublicKey is the laptop's WireGuard public key, 32 bytes in standard base64.
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9+/]{43}=$`
	PublicKey string `json:"publicKey"`

	// ClientVersion is the version of the detour binary on the laptop.
	// +kubebuilder:validation:MaxLength=64
	ClientVersion string `json:"clientVersion"`

	// User is the user's name on the laptop, such as "alice". It is for people to read, not for
	// access control. Terminals show it, so it must not have control characters.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^\P{C}*$`
	User string `json:"user"`
	// Host is the laptop's name, such as "alice-laptop". It must not have control characters
	// either.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^\P{C}*$`
	Host string `json:"host"`
}

// DNS is the cluster's own DNS.
type DNS struct {
	// Servers are the addresses of the cluster's DNS service.
	Servers []string `json:"servers,omitempty"`
	// Domain is the cluster domain without dots at its ends, for example "cluster.local".
	Domain string `json:"domain,omitempty"`
}

// Condition types and reasons of Session and Intercept.
const (
	// ConditionReady is true if the session's tunnel is up, or if the intercept's traffic goes to
	// the laptop.
	ConditionReady = "Ready"

	ReasonAddressAssigned = "AddressAssigned" // session: it has addresses, and its laptop has not connected yet
	ReasonConnected       = "Connected"       // session: the laptop's tunnel is up
	ReasonLaptopGone      = "LaptopGone"      // session and intercept: the laptop does not respond
	ReasonNoAddressLeft   = "NoAddressLeft"   // session: all addresses are in use
	ReasonKeyTaken        = "KeyTaken"        // session: another session owns its public key
	ReasonBadKey          = "BadKey"          // session: its public key is not a WireGuard key
	ReasonVersionMismatch = "VersionMismatch" // session: the versions of laptop and manager do not work together
)

// SessionStatus is what the traffic-manager tells the laptop.
type SessionStatus struct {
	// Addresses are the laptop's addresses on the VIF, at most one of each IP family, without a
	// prefix length.
	Addresses []string `json:"addresses,omitempty"`
	// ManagerPublicKey is the traffic-manager's WireGuard public key, base64.
	ManagerPublicKey string `json:"managerPublicKey,omitempty"`
	// ManagerVersion is the version of the traffic-manager.
	ManagerVersion string `json:"managerVersion,omitempty"`
	// ManagerPod is the name of the traffic-manager pod that looks after the session.
	ManagerPod string `json:"managerPod,omitempty"`
	// Subnets are the CIDRs of pods and services that the laptop should route to the VIF.
	Subnets []string `json:"subnets,omitempty"`
	// NodeAddresses are the addresses of nodes in Subnets. The laptop keeps reaching them directly.
	NodeAddresses []string `json:"nodeAddresses,omitempty"`
	// DNS is the cluster's DNS.
	DNS DNS `json:"dns,omitempty"`
	// UDPEndpoints are where the traffic-manager accepts WireGuard messages as UDP datagrams, as
	// host:port, the preferred ones first. A laptop that reaches none of them uses a path through
	// the API server.
	// +kubebuilder:validation:MaxItems=16
	UDPEndpoints []string `json:"udpEndpoints,omitempty"`
	// Connected is true while the laptop's tunnel is up.
	Connected bool `json:"connected,omitempty"`
	// GivenUpAfter is how long the laptop may be silent before the traffic-manager deletes the
	// session.
	GivenUpAfter metav1.Duration `json:"givenUpAfter,omitempty"`
	// LastSeen is when the last authenticated packet of the laptop arrived. It is updated at most
	// every 30 s.
	LastSeen *metav1.Time `json:"lastSeen,omitempty"`
	// Conditions has the condition Ready, whose message tells the user what to do.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Session is one laptop connected to one namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=dsess
// +kubebuilder:printcolumn:name="User",type=string,JSONPath=`.spec.user`
// +kubebuilder:printcolumn:name="Host",type=string,JSONPath=`.spec.host`
// +kubebuilder:printcolumn:name="Connected",type=boolean,JSONPath=`.status.connected`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.status.addresses[0]`
// +kubebuilder:printcolumn:name="Manager",type=string,JSONPath=`.status.managerPod`
// +kubebuilder:printcolumn:name="Last seen",type=date,JSONPath=`.status.lastSeen`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Session struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              SessionSpec   `json:"spec"`
	Status            SessionStatus `json:"status,omitempty"`
}

// SessionList is a list of Sessions.
//
// +kubebuilder:object:root=true
type SessionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Session `json:"items"`
}
