// Package intercept is the part of the traffic-manager that carries out Intercepts: it gets
// traffic-agents into the workload's pods, tells them which traffic goes to which laptop, and keeps
// the status of each Intercept true.
//
// Start with Reconciler. Reconcile takes three steps: observe reads everything that matters into
// facts (observe.go), decide computes what is to happen from the facts and the time alone
// (decide.go), and apply does that (apply.go). The rules that decide follows are in files of their
// own: conflict.go (two intercepts of one port), rollout.go (pods without an agent), replace.go
// (replaced containers), lost.go (a laptop that does not respond) and tls.go.
package intercept
