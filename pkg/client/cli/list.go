package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/traffic/argo"
	"github.com/detour-dev/detour/pkg/traffic/inject"
)

// listed is one row of `detour list`: a service port, or a workload without a service.
type listed struct {
	Service    string   `json:"service"`
	Port       string   `json:"port"`
	Workload   string   `json:"workload"`
	Redirect   string   `json:"redirect,omitempty"` // how traffic reaches the agent, or would
	Why        string   `json:"whyNot,omitempty"`
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

const rolloutPrefix = "rollout/"

func (a *app) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List what can be intercepted, how, and who does", Args: cobra.NoArgs, Example: "  detour list -n shop",
		Long: `Lists each port of the namespace's services: the workload behind it, whether it can be intercepted or why not, how its traffic reaches the
agent (targetPort: the agent takes over the port's name; nftables: the pod's own redirection; attach: that of an agent in the running
pods), and who intercepts which requests in which mode.`,
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
	namespace, _, err := a.flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	config, err := a.flags.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	services, err := clients.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explain.Error(err, "list the services of namespace "+namespace)
	}
	templates := map[string]*corev1.PodTemplateSpec{}
	idle := map[string]bool{} // scaled to 0
	if l, err := clients.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{}); err != nil {
		return nil, explain.Error(err, "list the deployments of namespace "+namespace)
	} else {
		for i := range l.Items {
			name, replicas := "deployment/"+l.Items[i].Name, l.Items[i].Spec.Replicas
			templates[name], idle[name] = &l.Items[i].Spec.Template, replicas != nil && *replicas == 0
		}
	}
	if l, err := clients.AppsV1().StatefulSets(namespace).List(ctx, metav1.ListOptions{}); err != nil {
		return nil, explain.Error(err, "list the stateful sets of namespace "+namespace)
	} else {
		for i := range l.Items {
			templates["statefulset/"+l.Items[i].Name] = &l.Items[i].Spec.Template
		}
	}
	if l, err := clients.AppsV1().DaemonSets(namespace).List(ctx, metav1.ListOptions{}); err != nil {
		return nil, explain.Error(err, "list the daemon sets of namespace "+namespace)
	} else {
		for i := range l.Items {
			templates["daemonset/"+l.Items[i].Name] = &l.Items[i].Spec.Template
		}
	}
	rollouts, err := argo.List(ctx, clients.Discovery().RESTClient(), namespace)
	if err != nil {
		return nil, explain.Error(err, "list the rollouts of namespace "+namespace)
	}
	for _, r := range rollouts {
		template := &r.Spec.Template
		if ref := r.Spec.WorkloadRef; ref != nil {
			from := strings.ToLower(ref.Kind) + "/" + ref.Name
			if t, ok := templates[from]; ok {
				template = t
				if idle[from] {
					delete(templates, from) // it is only the template
				}
			}
		}
		templates[rolloutPrefix+r.GetName()] = template
	}
	holders, err := a.holders(ctx, namespace)
	if err != nil {
		return nil, err
	}
	return rowsOf(services.Items, templates, holders), nil
}

// rowsOf makes the rows from what the cluster has: templates by "kind/name" of the workload, holders by "kind/name:port" (and UDP), with port 0
// for a workload that is replaced without its traffic.
func rowsOf(services []corev1.Service, templates map[string]*corev1.PodTemplateSpec, holders map[string][]holder) []listed {
	rows := []listed{} // not nil: a script reads [] and not null
	alone := map[string]bool{}
	for name := range templates {
		alone[name] = true
	}
	for i := range services {
		s := &services[i]
		var workloads []string
		for name, t := range templates {
			selects := len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(t.Labels))
			if strings.HasPrefix(name, rolloutPrefix) {
				selects = argo.Selects(s.Spec.Selector, t)
			}
			if selects {
				workloads = append(workloads, name)
				delete(alone, name)
			}
		}
		slices.Sort(workloads)
		for _, p := range s.Spec.Ports {
			row := listed{Service: s.Name, Port: fmt.Sprint(p.Port), Workload: strings.Join(workloads, ", ")}
			if p.Name != "" {
				row.Port += "/" + p.Name
			}
			if len(workloads) == 0 {
				row.Why = "no workload stands behind it"
			} else if len(workloads) > 1 {
				row.Why = "several workloads stand behind it"
			} else if port, err := inject.PlanPort(s, p, templates[row.Workload]); err != nil {
				row.Why = err.Error()
			} else {
				row.Redirect = port.Via
				row.Intercepts = slices.Concat(holders[fmt.Sprintf("%s:%d%s", row.Workload, port.Port, port.Protocol)], holders[row.Workload+":0"])
				for _, h := range row.Intercepts {
					row.Redirect = cmp.Or(h.redirect, row.Redirect)
				}
			}
			rows = append(rows, row)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(alone)) {
		rows = append(rows, listed{Workload: name, Why: "no service leads to it", Intercepts: holders[name+":0"]})
	}
	return rows
}

// holders says who intercepts which container port, by "workload:port". Without detour in the cluster nobody does.
func (a *app) holders(ctx context.Context, namespace string) (map[string][]holder, error) {
	config, err := a.flags.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		return nil, explain.Error(err, "reach the cluster")
	}
	if err := detour.AddToScheme(c.Scheme()); err != nil {
		return nil, err
	}
	var list detour.InterceptList
	holders := map[string][]holder{}
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		if explained := explain.Error(err, "list the intercepts of namespace "+namespace); !strings.Contains(explained.Error(), "not installed") {
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
	fmt.Fprintln(t, "SERVICE\tPORT\tWORKLOAD\tINTERCEPTABLE\tINTERCEPTED BY\tMODE\tGETS")
	for _, r := range rows {
		able := "yes, by " + r.Redirect
		if r.Why != "" {
			able = "no: " + r.Why
		}
		first := fmt.Sprintf("%s\t%s\t%s\t%s", cell(r.Service), cell(r.Port), cell(r.Workload), able)
		if len(r.Intercepts) == 0 {
			fmt.Fprintln(t, first)
		}
		for _, h := range r.Intercepts {
			who := h.Laptop
			if h.Phase != string(detour.PhaseActive) {
				who += " (" + h.Phase + ")"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", first, who, h.Mode, h.Requests)
			first = "\t\t\t"
		}
	}
	_ = t.Flush()
}
