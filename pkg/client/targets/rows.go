package targets

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// targetsOf computes the targets from the objects of a namespace.
func targetsOf(
	services []corev1.Service, all []*workloads.Workload, pods []corev1.Pod, intercepts byPort,
) []*daemonv1.Target {
	var rows []*daemonv1.Target
	served := map[*workloads.Workload]bool{}
	for i := range services {
		s := &services[i]
		behind := workloads.Behind(all, s.Spec.Selector)
		var names []string
		for _, w := range behind {
			served[w] = served[w] || len(s.Spec.Ports) > 0
			names = append(names, w.Name())
		}
		slices.Sort(names)
		for _, p := range s.Spec.Ports {
			row := &daemonv1.Target{Service: s.Name, Port: fmt.Sprint(p.Port), Workload: strings.Join(names, ", ")}
			if p.Name != "" {
				row.Port += "/" + p.Name
			}
			switch len(behind) {
			case 0:
				row.WhyNot = "no workload matches its selector"
			case 1:
				judge(row, s, p, behind[0], behind[0].Running(pods), intercepts)
			default:
				row.WhyNot = "several workloads match its selector"
			}
			rows = append(rows, row)
		}
	}
	byName := func(a, b *workloads.Workload) int { return cmp.Compare(a.Name(), b.Name()) }
	all = slices.SortedFunc(slices.Values(all), byName)
	for _, w := range all {
		if served[w] || w.TemplateOf != "" {
			continue
		}
		row := &daemonv1.Target{
			Workload: w.Name(), WhyNot: "no service selects it", Only: "--mode replace",
			Intercepts: intercepts[portKey{workload: w.Name()}],
		}
		if why := cmp.Or(w.TemplateObstacle(), w.RolloutObstacle()); why != "" {
			row.WhyNot, row.Only = why, ""
		}
		rows = append(rows, row)
	}
	return rows
}

// judge fills in what the traffic-manager would decide about a service port with one workload.
func judge(
	row *daemonv1.Target, s *corev1.Service, p corev1.ServicePort, w *workloads.Workload, running []corev1.Pod,
	intercepts byPort,
) {
	if row.WhyNot = w.TemplateObstacle(); row.WhyNot != "" {
		return
	}
	port, err := inject.PlanPort(s, p, w.Template)
	if err != nil {
		row.WhyNot = err.Error()
		return
	}
	if row.WhyNot = w.PortObstacle(running, port); row.WhyNot != "" {
		return
	}
	row.Redirect = port.Via
	row.Intercepts = slices.Concat(
		intercepts[portKey{workload: w.Name(), port: port.Port, protocol: port.Protocol}],
		intercepts[portKey{workload: w.Name()}],
	)
	for _, i := range row.Intercepts {
		row.Redirect = cmp.Or(i.Redirect, row.Redirect)
	}
	if row.WhyNot = w.RolloutObstacle(); row.WhyNot != "" {
		row.Redirect = ""
		if port.Protocol == "" {
			row.Redirect, row.Only = inject.ViaAttach, "--attach"
		}
	}
}
