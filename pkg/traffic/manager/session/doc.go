// Package session is the part of the traffic-manager that looks after laptops: it assigns their
// addresses, tells them what to route, and keeps the status of each Session true.
//
// Start with Reconciler. Reconcile observes the cluster and the tunnel (observe.go), decides what
// the Session's status should be (decide.go, a pure function), and writes that (reconciler.go).
package session
