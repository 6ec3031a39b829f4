// Package manager tests the traffic-manager's reconcilers against a real API server and etcd, the
// ones that are compiled for the local cluster. Nothing else runs there: the tests create the pods
// that a Deployment's controller would create, and connect as the agents that would run in them.
// That makes them fast, and lets them see states that pass quickly in a cluster.
package manager
