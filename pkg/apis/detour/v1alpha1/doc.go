// Package v1alpha1 holds the custom resources of detour. A Session is one laptop connected to one
// namespace. An Intercept sends the traffic of a service port to that laptop. Together they are the
// whole control plane: Kubernetes RBAC decides who may create them, and a restarted traffic-manager
// rebuilds everything from them.
//
// +kubebuilder:object:generate=true
// +groupName=detour.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "detour.dev", Version: "v1alpha1"}

// AddToScheme registers the types of this package with a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &Session{}, &SessionList{}, &Intercept{}, &InterceptList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
