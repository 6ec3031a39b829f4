// Package environment finds out which environment the app's container has in the cluster: what its pod says, and the ConfigMaps and
// Secrets that it names, read with the user's own rights. What the user may not read is left out and named.
package environment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubectl/pkg/cmd/set/env"
)

// Sources give the entries of a ConfigMap or Secret.
type Sources interface {
	ConfigMap(name string) (map[string]string, error)
	Secret(name string) (map[string]string, error)
}

// Of is a container's environment, and one short reason for each part of it that could not be had.
func Of(pod *corev1.Pod, container *corev1.Container, sources Sources) (variables map[string]string, missing []string) {
	variables = map[string]string{}
	lacks := func(what string, optional *bool, err error) {
		if optional == nil || !*optional || !errors.Is(err, ErrAbsent) {
			missing = append(missing, fmt.Sprintf("%s (%s)", what, err))
		}
	}
	for _, from := range container.EnvFrom {
		switch {
		case from.ConfigMapRef != nil:
			all, err := sources.ConfigMap(from.ConfigMapRef.Name)
			if err != nil {
				lacks("configmap "+from.ConfigMapRef.Name, from.ConfigMapRef.Optional, err)
			}
			add(variables, from.Prefix, all)
		case from.SecretRef != nil:
			all, err := sources.Secret(from.SecretRef.Name)
			if err != nil {
				lacks("secret "+from.SecretRef.Name, from.SecretRef.Optional, err)
			}
			add(variables, from.Prefix, all)
		}
	}
	for _, v := range container.Env {
		if v.ValueFrom == nil {
			variables[v.Name] = expand(v.Value, variables)
			continue
		}
		value, what, optional, err := valueOf(v.ValueFrom, pod, container, sources)
		if err != nil {
			lacks(what, optional, err)
			continue
		}
		variables[v.Name] = value
	}
	slices.Sort(missing)
	return variables, slices.Compact(missing)
}

// ErrAbsent is that of what does not exist, which may be on purpose.
var ErrAbsent = errors.New("does not exist")

func add(variables map[string]string, prefix string, all map[string]string) {
	for name, value := range all {
		variables[prefix+name] = value
	}
}

func valueOf(from *corev1.EnvVarSource, pod *corev1.Pod, container *corev1.Container, sources Sources) (value, what string, optional *bool, err error) {
	pick := func(all map[string]string, key string, err error) (string, error) {
		if err != nil {
			return "", err
		}
		value, ok := all[key]
		if !ok {
			return "", fmt.Errorf("key %s %w", key, ErrAbsent)
		}
		return value, nil
	}
	switch {
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		all, err := sources.ConfigMap(ref.Name)
		value, err = pick(all, ref.Key, err)
		return value, "configmap " + ref.Name, ref.Optional, err
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		all, err := sources.Secret(ref.Name)
		value, err = pick(all, ref.Key, err)
		return value, "secret " + ref.Name, ref.Optional, err
	case from.FieldRef != nil:
		if value, ok := field(pod, from.FieldRef.FieldPath); ok {
			return value, "", nil, nil
		}
	case from.ResourceFieldRef == nil:
		return "", "a variable", nil, errors.New("its source is of a kind that detour does not know")
	}
	// What is left needs no API server.
	value, err = env.GetEnvVarRefValue(nil, pod.Namespace, env.NewResourceStore(), from, pod, container)
	return value, "a field of the pod", nil, err
}

// field are those paths that package env does not know.
func field(pod *corev1.Pod, path string) (string, bool) {
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, true
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, true
	case "status.hostIP":
		return pod.Status.HostIP, true
	case "status.podIP":
		return pod.Status.PodIP, true
	case "status.podIPs":
		var all []string
		for _, a := range pod.Status.PodIPs {
			all = append(all, a.IP)
		}
		return strings.Join(all, ","), true
	case "status.hostIPs":
		var all []string
		for _, a := range pod.Status.HostIPs {
			all = append(all, a.IP)
		}
		return strings.Join(all, ","), true
	}
	return "", false
}

// expand puts in what $(NAME) refers to, as the kubelet does: $$ is a dollar, and what is not known stays as it is written.
func expand(s string, variables map[string]string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, rest, closed := strings.Cut(strings.TrimPrefix(after, "("), ")")
		value, known := variables[name]
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			s = after[1:]
		case strings.HasPrefix(after, "(") && closed && known:
			b.WriteString(value)
			s = rest
		case strings.HasPrefix(after, "(") && closed:
			b.WriteString("$(" + name + ")")
			s = rest
		default:
			b.WriteByte('$')
			s = after
		}
	}
}

// own are variables that mean this laptop and no other machine.
var own = []string{"HOME", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PWD", "SHELL", "TERM", "TMPDIR", "USER"}

// Merge is a process's environment with the container's variables put over it, but for those that mean the laptop, or that a
// shell would run.
func Merge(process []string, variables map[string]string) []string {
	all := slices.Clone(process)
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if !slices.Contains(own, name) && !slices.Contains(run, name) && !strings.HasPrefix(name, "BASH_FUNC_") {
			all = append(slices.DeleteFunc(all, func(v string) bool { return strings.HasPrefix(v, name+"=") }), name+"="+variables[name])
		}
	}
	return all
}
