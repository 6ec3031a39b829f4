package inject

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

// idle is what runs in place of a replaced container.
var idle = []string{"/traffic-agent", "idle"}

// linger is how long it goes on when its pod is to end, in place of the app's own hook: for so long services may still send traffic, and
// the agent ends only after it.
const linger = "3s"

// Empty says whether the pods are as their owner wrote them.
func (p Plan) Empty() bool { return len(p.Ports)+len(p.Replaced) == 0 }

// Replaces says whether a container is not to run.
func (p Plan) Replaces(container string) bool { return slices.Contains(p.Replaced, container) }

// Replacing adds a container that is not to run.
func (p Plan) Replacing(container string) Plan {
	if !p.Replaces(container) {
		p.Replaced = append(slices.Clone(p.Replaced), container)
	}
	return p
}

// Restoring lets every replaced container run again that keep is false for.
func (p Plan) Restoring(keep func(container string) bool) Plan {
	p.Replaced = slices.DeleteFunc(slices.Clone(p.Replaced), func(c string) bool { return !keep(c) })
	return p
}

// IsReplaced says whether a container of the pod is idle in place of the app's.
func IsReplaced(pod *corev1.Pod, container string) bool {
	for c := range servers(&pod.Spec) {
		if c.Name == container {
			return slices.Equal(c.Command, idle)
		}
	}
	return false
}

// replace puts an idle container in place of the app's. Everything stays but what the app's own program and image are needed for.
func replace(spec *corev1.PodSpec, name string, traffic bool, opt Options) error {
	for c := range servers(spec) {
		if c.Name != name {
			continue
		}
		c.Image, c.ImagePullPolicy = opt.Image, opt.PullPolicy
		c.Command, c.Args, c.WorkingDir = slices.Clone(idle), nil, ""
		if traffic {
			c.Args = []string{linger}
		}
		c.StartupProbe, c.ReadinessProbe, c.LivenessProbe, c.Lifecycle = nil, nil, nil, nil
		// The user may stand in the app's image, and a pod may ask for any but root.
		if c.SecurityContext == nil || c.SecurityContext.RunAsUser == nil {
			if spec.SecurityContext == nil || spec.SecurityContext.RunAsUser == nil {
				if c.SecurityContext == nil {
					c.SecurityContext = &corev1.SecurityContext{}
				}
				c.SecurityContext.RunAsUser = ptr(int64(agentconfig.UserID))
			}
		}
		return nil
	}
	return fmt.Errorf("the pod has no container %s to replace", name)
}

// defaultContainer is what kubectl takes when nobody says which.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// PickContainer decides which container of a workload is replaced: the wanted one, the only one, the one that declares the port, or the
// one that kubectl would take. Its errors are sentences for the user.
func PickContainer(template *corev1.PodTemplateSpec, wanted string, port int32) (string, error) {
	if os := template.Spec.OS; os != nil && os.Name == corev1.Windows {
		return "", errors.New("its pods run on Windows: only Linux containers can be replaced")
	}
	var names []string
	declares := ""
	for c := range servers(&template.Spec) {
		names = append(names, c.Name)
		if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.ContainerPort == port }) {
			declares = c.Name
		}
	}
	annotated := template.Annotations[defaultContainer]
	switch {
	case wanted != "" && !slices.Contains(names, wanted):
		return "", fmt.Errorf("it has no container %s: it has %s", wanted, strings.Join(names, ", "))
	case wanted != "":
		return wanted, nil
	case len(names) == 1:
		return names[0], nil
	case declares != "":
		return declares, nil
	case slices.Contains(names, annotated):
		return annotated, nil
	}
	return "", fmt.Errorf("it has several containers, %s: say which one to replace with --container", strings.Join(names, ", "))
}

// NamedPort is the number of a container port with this name, also where the agent has taken the name over; 0 when there is none.
func NamedPort(pod *corev1.Pod, name string) int32 {
	if plan, err := ParsePlan(pod.Annotations[Annotation]); err == nil {
		for _, p := range plan.Ports {
			if p.Name == name {
				return p.Port
			}
		}
	}
	for c := range servers(&pod.Spec) {
		for _, p := range c.Ports {
			if p.Name == name {
				return p.ContainerPort
			}
		}
	}
	return 0
}
