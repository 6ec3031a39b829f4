// Package laptop makes laptops for the suites, on the machine of the local cluster: each has a
// network, a resolver configuration, a home and directories for detour of its own, and reaches the
// API server and the nodes and nothing else. What works in one works because of detour, not because
// the machine of the suites happens to have a route.
package laptop
