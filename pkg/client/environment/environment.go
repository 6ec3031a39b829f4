package environment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubectl/pkg/cmd/set/env"
)

// sources return the entries of ConfigMaps and Secrets. The error is errAbsent if the object does
// not exist.
type sources interface {
	ConfigMap(ctx context.Context, name string) (map[string]string, error)
	Secret(ctx context.Context, name string) (map[string]string, error)
}

// errAbsent means that an object or a key does not exist. An optional reference allows that.
var errAbsent = errors.New("does not exist")

// resolve returns a container's environment, and one short reason for each part of it that could
// not be read.
func resolve(
	ctx context.Context, pod *corev1.Pod, container *corev1.Container, from sources,
) (variables map[string]string, missing []string) {
	variables = map[string]string{}
	addMissing := func(part string, optional *bool, err error) {
		if err != nil && (optional == nil || !*optional || !errors.Is(err, errAbsent)) {
			missing = append(missing, fmt.Sprintf("%s (%s)", part, err))
		}
	}
	for _, e := range container.EnvFrom {
		switch {
		case e.ConfigMapRef != nil:
			entries, err := from.ConfigMap(ctx, e.ConfigMapRef.Name)
			addMissing("configmap "+e.ConfigMapRef.Name, e.ConfigMapRef.Optional, err)
			addPrefixed(variables, e.Prefix, entries)
		case e.SecretRef != nil:
			entries, err := from.Secret(ctx, e.SecretRef.Name)
			addMissing("secret "+e.SecretRef.Name, e.SecretRef.Optional, err)
			addPrefixed(variables, e.Prefix, entries)
		}
	}
	for _, v := range container.Env {
		if v.ValueFrom == nil {
			variables[v.Name] = expand(v.Value, variables)
			continue
		}
		r := reference{source: v.ValueFrom, pod: pod, container: container}
		value, err := r.value(ctx, from)
		if err != nil {
			addMissing(r.part(), r.optional(), err)
			continue
		}
		variables[v.Name] = value
	}
	slices.Sort(missing)
	return variables, slices.Compact(missing)
}

func addPrefixed(variables map[string]string, prefix string, entries map[string]string) {
	for name, value := range entries {
		variables[prefix+name] = value
	}
}

// reference is a variable's value in another object, or in a field of the pod.
type reference struct {
	source    *corev1.EnvVarSource
	pod       *corev1.Pod
	container *corev1.Container
}

// part names the object or field, for users.
func (r *reference) part() string {
	switch s := r.source; {
	case s.ConfigMapKeyRef != nil:
		return "configmap " + s.ConfigMapKeyRef.Name
	case s.SecretKeyRef != nil:
		return "secret " + s.SecretKeyRef.Name
	case s.FieldRef == nil && s.ResourceFieldRef == nil:
		return "a variable"
	}
	return "a field of the pod"
}

func (r *reference) optional() *bool {
	switch s := r.source; {
	case s.ConfigMapKeyRef != nil:
		return s.ConfigMapKeyRef.Optional
	case s.SecretKeyRef != nil:
		return s.SecretKeyRef.Optional
	}
	return nil
}

func (r *reference) value(ctx context.Context, from sources) (string, error) {
	switch s := r.source; {
	case s.ConfigMapKeyRef != nil:
		entries, err := from.ConfigMap(ctx, s.ConfigMapKeyRef.Name)
		return lookUp(entries, s.ConfigMapKeyRef.Key, err)
	case s.SecretKeyRef != nil:
		entries, err := from.Secret(ctx, s.SecretKeyRef.Name)
		return lookUp(entries, s.SecretKeyRef.Key, err)
	case s.FieldRef != nil:
		if value, ok := podField(r.pod, s.FieldRef.FieldPath); ok {
			return value, nil
		}
	case s.ResourceFieldRef == nil:
		return "", errors.New("detour does not know the kind of its source")
	}
	// The other fields need no API server.
	return env.GetEnvVarRefValue(nil, r.pod.Namespace, env.NewResourceStore(), r.source, r.pod, r.container)
}

func lookUp(entries map[string]string, key string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	value, ok := entries[key]
	if !ok {
		return "", fmt.Errorf("key %s %w", key, errAbsent)
	}
	return value, nil
}

// podField returns the fields that package env does not know.
func podField(pod *corev1.Pod, path string) (string, bool) {
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

// expand replaces $(NAME) with the variable's value, as the kubelet does. $$ becomes a dollar sign,
// and a reference to an unknown variable stays as it is.
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

// laptopVariables describe this laptop, so the container's values would be wrong here.
var laptopVariables = []string{"HOME", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PWD", "SHELL", "TERM", "TMPDIR", "USER"}

// Merge returns the environment of a process with the container's variables on top. It leaves out
// those that describe the laptop, and those whose value a shell would execute.
func Merge(process []string, variables map[string]string) []string {
	all := slices.Clone(process)
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if slices.Contains(laptopVariables, name) || slices.Contains(executedVariables, name) ||
			strings.HasPrefix(name, "BASH_FUNC_") {
			continue
		}
		all = slices.DeleteFunc(all, func(v string) bool { return strings.HasPrefix(v, name+"=") })
		all = append(all, name+"="+variables[name])
	}
	return all
}
