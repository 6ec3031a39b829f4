package explain

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Name returns an error if no object of Kubernetes can have this name. what says whose name it is,
// such as "the service" or a flag.
func Name(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s is empty: write a name such as my-app", what)
	case len(name) > validation.DNS1123SubdomainMaxLength:
		return fmt.Errorf("%s %q... is too long for the name of a Kubernetes object, which has at most %d bytes: "+
			"check it", what, name[:20], validation.DNS1123SubdomainMaxLength)
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		return fmt.Errorf("%s %q is not a valid name in Kubernetes: use only lowercase letters, digits, - and ., as "+
			"in my-app", what, name)
	}
	return nil
}
