package inject

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

// idle is the command that runs in place of a replaced container.
var idle = []string{"/traffic-agent", "idle"}

// linger is how long the idle command goes on after its pod begins to end. It stands in for the
// app's own hook: services may still send traffic for that long, and the agent ends only after the
// idle container.
const linger = "3s"

// Empty reports whether the plan changes nothing in a pod.
func (p Plan) Empty() bool { return len(p.Ports)+len(p.Replaced) == 0 }

// Replaces reports whether the plan replaces a container.
func (p Plan) Replaces(container string) bool { return slices.Contains(p.Replaced, container) }

// Replacing returns the plan with one more replaced container.
func (p Plan) Replacing(container string) Plan {
	if !p.Replaces(container) {
		p.Replaced = append(slices.Clone(p.Replaced), container)
	}
	return p
}

// Restoring returns the plan without the replaced containers for which keep returns false.
func (p Plan) Restoring(keep func(container string) bool) Plan {
	p.Replaced = slices.DeleteFunc(slices.Clone(p.Replaced), func(c string) bool { return !keep(c) })
	return p
}

// IsReplaced reports whether the idle command runs in place of a container of the pod.
func IsReplaced(pod *corev1.Pod, container string) bool {
	for c := range servers(&pod.Spec) {
		if c.Name == container {
			return slices.Equal(c.Command, idle)
		}
	}
	return false
}

// replace puts the idle command in place of a container's program. It removes what needs the app's
// program or image, and keeps everything else.
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
		// The app's image may have named a user, and the pod may demand any user but root.
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

// defaultContainer is the annotation that names the container kubectl chooses by default.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// PickContainer returns the name of the container that is meant: the one that is named, the only
// one, the one that declares the port, or the one that kubectl chooses. Its errors are sentences
// for the user.
func PickContainer(template *corev1.PodTemplateSpec, name string, port int32) (string, error) {
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
	case name != "" && !slices.Contains(names, name):
		return "", fmt.Errorf("it has no container %s: it has %s", name, strings.Join(names, ", "))
	case name != "":
		return name, nil
	case len(names) == 1:
		return names[0], nil
	case declares != "":
		return declares, nil
	case slices.Contains(names, annotated):
		return annotated, nil
	}
	return "", fmt.Errorf("it has several containers, %s: say which one to replace with --container",
		strings.Join(names, ", "))
}

// NamedPort returns the number of the container port with a name, or 0 when there is none. It finds
// the app's port although the agent has taken the name.
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
