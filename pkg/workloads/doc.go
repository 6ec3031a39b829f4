// Package workloads knows the workloads that a traffic-agent can be added to: Deployments,
// StatefulSets, DaemonSets and Argo Rollouts. It answers which workload stands behind a service,
// which port of the service is meant, which pods run, and why a workload cannot get an agent.
// The traffic-manager decides by it; the laptop uses it for `detour list`, for the environment of
// a container and for `detour uninstall`. Start with List, Behind and ServicePort.
package workloads
