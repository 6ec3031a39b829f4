package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/traffic/inject"
)

// listed is one row of `detour list`: a service port.
type listed struct {
	Service     string `json:"service"`
	Port        string `json:"port"`
	Workload    string `json:"workload"`
	Redirect    string `json:"redirect,omitempty"`
	Why         string `json:"whyNot,omitempty"`
	Intercepted string `json:"interceptedBy,omitempty"`
}

func (a *app) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the services that can be intercepted, and who does", Args: cobra.NoArgs, Example: "  detour list -n shop",
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
	if l, err := clients.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{}); err != nil {
		return nil, explain.Error(err, "list the deployments of namespace "+namespace)
	} else {
		for i := range l.Items {
			templates["deployment/"+l.Items[i].Name] = &l.Items[i].Spec.Template
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
	holders, err := a.holders(ctx, namespace)
	if err != nil {
		return nil, err
	}
	return rowsOf(services.Items, templates, holders), nil
}

// rowsOf makes the rows from what the cluster has: templates by "kind/name" of the workload, holders by "kind/name:port".
func rowsOf(services []corev1.Service, templates map[string]*corev1.PodTemplateSpec, holders map[string]string) []listed {
	rows := []listed{} // not nil: a script reads [] and not null
	for i := range services {
		s := &services[i]
		var workloads []string
		for name, t := range templates {
			if len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(t.Labels)) {
				workloads = append(workloads, name)
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
				row.Intercepted = holders[fmt.Sprintf("%s:%d", row.Workload, port.Port)]
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// holders says who intercepts which container port, by "workload:port". Without detour in the cluster nobody does.
func (a *app) holders(ctx context.Context, namespace string) (map[string]string, error) {
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
	holders := map[string]string{}
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		if explained := explain.Error(err, "list the intercepts of namespace "+namespace); !strings.Contains(explained.Error(), "not installed") {
			return nil, explained
		}
		return holders, nil
	}
	for _, i := range list.Items {
		if w := i.Status.Workload; w != nil && i.Status.Phase != detour.PhaseRefused {
			key := fmt.Sprintf("%s/%s:%d", strings.ToLower(w.Kind), w.Name, i.Status.ContainerPort)
			who := fmt.Sprintf("%s (%s)", i.Status.Laptop, i.Status.Phase)
			if i.Spec.Match != nil {
				who += ": " + i.Status.Requests
			}
			if holders[key] != "" {
				who = holders[key] + "; " + who
			}
			holders[key] = who
		}
	}
	return holders, nil
}

func printList(w io.Writer, rows []listed) {
	if len(rows) == 0 {
		fmt.Fprintln(w, "there are no services in this namespace")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tPORT\tWORKLOAD\tINTERCEPTABLE\tINTERCEPTED BY")
	for _, r := range rows {
		able := "yes, by " + r.Redirect
		if r.Why != "" {
			able = "no: " + r.Why
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Service, r.Port, r.Workload, able, r.Intercepted)
	}
	_ = t.Flush()
}
