package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// listed is one row of `detour list`: a service port, or a workload without a service.
type listed struct {
	Service    string   `json:"service"`
	Port       string   `json:"port"`
	Workload   string   `json:"workload"`
	Redirect   string   `json:"redirect,omitempty"` // how traffic reaches the agent, or would
	Why        string   `json:"whyNot,omitempty"`
	Only       string   `json:"only,omitempty"` // the flag with which it can be intercepted in spite of that
	Intercepts []holder `json:"intercepts,omitempty"`
}

// holder is an intercept of a service port.
type holder struct {
	Name     string    `json:"name"`
	Laptop   string    `json:"laptop"` // user@host
	Phase    string    `json:"phase"`
	Mode     string    `json:"mode"`
	Requests string    `json:"requests"`
	Agents   string    `json:"agents"`
	Since    time.Time `json:"since"`
	redirect string
}

func (a *app) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List what can be intercepted, how, and who does", Args: cobra.NoArgs, Example: "  detour list -n shop",
		Long: `Lists each port of the namespace's services: the workload behind it, whether it can be intercepted or why not, how its traffic reaches the
agent (targetPort: the agent takes over the port's name; nftables: the pod's own redirection; attach: that of an agent in the running
pods), and who intercepts which requests in which mode. Why something cannot be intercepted is what ` + "`detour intercept`" + ` would say, and may
end with the flag with which it can.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			rows, err := a.list(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(rows, func(w io.Writer) { printList(w, rows) })
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) list(ctx context.Context) ([]listed, error) {
	loaded, err := kubeconfig.Load(a.flags)
	if err != nil {
		return nil, err
	}
	namespace := loaded.Namespace
	explained := func(err error, doing string) error {
		return explain.Context{Doing: doing, Server: loaded.Config.Host, Namespace: namespace}.Error(err)
	}
	clients, err := kubernetes.NewForConfig(loaded.Config)
	if err != nil {
		return nil, explained(err, "connect to the cluster")
	}
	services, err := clients.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explained(err, "list the services of namespace "+namespace)
	}
	var all []*workloads.Workload
	deployments, err := clients.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explained(err, "list the deployments of namespace "+namespace)
	}
	all = append(all, workloads.In(deployments)...)
	statefulSets, err := clients.AppsV1().StatefulSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explained(err, "list the stateful sets of namespace "+namespace)
	}
	all = append(all, workloads.In(statefulSets)...)
	daemonSets, err := clients.AppsV1().DaemonSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explained(err, "list the daemon sets of namespace "+namespace)
	}
	all = append(all, workloads.In(daemonSets)...)
	rollouts, err := argo.List(ctx, clients.Discovery().RESTClient(), namespace)
	if err != nil {
		return nil, explained(err, "list the rollouts of namespace "+namespace)
	}
	all = workloads.AddRollouts(all, rollouts)
	// A mesh's proxy may be in the pods alone. Who may not see them is told when they intercept.
	pods, err := clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if apierrors.IsForbidden(err) {
		pods = &corev1.PodList{}
	} else if err != nil {
		return nil, explained(err, "list the pods of namespace "+namespace)
	}
	holders, err := holders(ctx, loaded)
	if err != nil {
		return nil, err
	}
	rows := rowsOf(services.Items, all, pods.Items, holders)
	if len(rows) == 0 { // as the API server says also of a namespace that is not there; who may not look is not told
		if _, err := clients.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return nil, explained(err, "read the namespace")
		}
	}
	return rows, nil
}

// rowsOf makes the rows from what the cluster has: holders by "kind/name:port" (and UDP), with port 0 for a workload that is replaced
// without its traffic.
func rowsOf(services []corev1.Service, all []*workloads.Workload, pods []corev1.Pod, holders map[string][]holder) []listed {
	rows := []listed{} // not nil: a script reads [] and not null
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
			row := listed{Service: s.Name, Port: fmt.Sprint(p.Port), Workload: strings.Join(names, ", ")}
			if p.Name != "" {
				row.Port += "/" + p.Name
			}
			switch len(behind) {
			case 0:
				row.Why = "no workload stands behind it"
			case 1:
				row.judge(s, p, behind[0], behind[0].Running(pods), holders)
			default:
				row.Why = "several workloads stand behind it"
			}
			rows = append(rows, row)
		}
	}
	all = slices.SortedFunc(slices.Values(all), func(a, b *workloads.Workload) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, w := range all {
		if served[w] || w.TemplateOf != "" {
			continue
		}
		row := listed{Workload: w.Name(), Why: "no service leads to it", Only: "--mode replace", Intercepts: holders[w.Name()+":0"]}
		if why := cmp.Or(w.UnknownTemplate(), w.CannotRoll()); why != "" {
			row.Why, row.Only = why, ""
		}
		rows = append(rows, row)
	}
	return rows
}

// judge says what the traffic-manager would.
func (l *listed) judge(s *corev1.Service, p corev1.ServicePort, w *workloads.Workload, running []corev1.Pod, holders map[string][]holder) {
	if l.Why = w.UnknownTemplate(); l.Why != "" {
		return
	}
	port, err := inject.PlanPort(s, p, w.Template)
	if err != nil {
		l.Why = err.Error()
		return
	}
	if l.Why = w.LeaveAlone(running, port); l.Why != "" {
		return
	}
	l.Redirect = port.Via
	l.Intercepts = slices.Concat(holders[fmt.Sprintf("%s:%d%s", w.Name(), port.Port, port.Protocol)], holders[w.Name()+":0"])
	for _, h := range l.Intercepts {
		l.Redirect = cmp.Or(h.redirect, l.Redirect)
	}
	if l.Why = w.CannotRoll(); l.Why != "" {
		l.Redirect = ""
		if port.Protocol == "" {
			l.Redirect, l.Only = inject.ViaAttach, "--attach"
		}
	}
}

// holders says who intercepts which container port, by "workload:port". Without detour in the cluster nobody does.
func holders(ctx context.Context, loaded *kubeconfig.Loaded) (map[string][]holder, error) {
	c, err := client.New(loaded.Config, client.Options{})
	if err != nil {
		return nil, explain.Error(err, "reach the cluster")
	}
	if err := detour.AddToScheme(c.Scheme()); err != nil {
		return nil, err
	}
	var list detour.InterceptList
	holders := map[string][]holder{}
	if err := c.List(ctx, &list, client.InNamespace(loaded.Namespace)); err != nil {
		if explained := explain.Error(err, "list the intercepts of namespace "+loaded.Namespace); !strings.Contains(explained.Error(), "not installed") {
			return nil, explained
		}
		return holders, nil
	}
	for _, i := range list.Items {
		if w := i.Status.Workload; w != nil && i.Status.Phase != detour.PhaseRefused {
			key := fmt.Sprintf("%s/%s:%d%s", strings.ToLower(w.Kind), w.Name, i.Status.ContainerPort, i.Status.Protocol)
			holders[key] = append(holders[key], holder{
				Name: i.Name, Laptop: i.Status.Laptop, Phase: string(i.Status.Phase), Mode: strings.ToLower(string(i.Spec.Mode)), Requests: i.Status.Requests,
				Agents: i.Status.Agents, Since: i.CreationTimestamp.Time, redirect: i.Status.Redirect,
			})
		}
	}
	return holders, nil
}

func cell(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func printList(w io.Writer, rows []listed) {
	if len(rows) == 0 {
		fmt.Fprintln(w, "there are no services in this namespace")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tPORT\tWORKLOAD\tINTERCEPTABLE\tINTERCEPTED BY\tSINCE\tMODE\tGETS")
	for _, r := range rows {
		able := "yes, by " + r.Redirect
		switch {
		case r.Only != "":
			able = "with " + r.Only + ": " + r.Why
		case r.Why != "":
			able = "no: " + r.Why
		}
		first := []string{cell(r.Service), cell(r.Port), cell(r.Workload), able}
		if len(r.Intercepts) == 0 {
			printRow(t, first...)
		}
		for _, h := range r.Intercepts {
			who := h.Laptop
			if h.Phase != string(detour.PhaseActive) {
				who += " (" + h.Phase + ")"
			}
			printRow(t, append(first, who, h.Since.Local().Format(time.DateTime), h.Mode, h.Requests)...)
			first = []string{"", "", "", ""}
		}
	}
	_ = t.Flush()
}

// printRow writes cells that other people may have written.
func printRow(w io.Writer, cells ...string) {
	for i := range cells {
		cells[i] = harmless(cells[i])
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}
