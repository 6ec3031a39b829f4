package explain

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Name refuses what no object of Kubernetes is called. What says whose name it is, such as a flag.
func Name(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s is empty: write a name such as my-app", what)
	case len(name) > validation.DNS1123SubdomainMaxLength:
		return fmt.Errorf("%s %q... is longer than a name in Kubernetes, which has at most %d bytes: look at it again", what, name[:20], validation.DNS1123SubdomainMaxLength)
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		return fmt.Errorf("%s %q is no name in Kubernetes: write small letters, digits, - and . only, as in my-app", what, name)
	}
	return nil
}
