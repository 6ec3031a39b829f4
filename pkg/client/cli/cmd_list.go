package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/targets"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// listRow is one row of `detour list`: a service port, or a workload without a service.
type listRow struct {
	Service    string          `json:"service"`
	Port       string          `json:"port"`
	Workload   string          `json:"workload"`
	Redirect   string          `json:"redirect,omitempty"` // how traffic reaches the agent, or would reach it
	Why        string          `json:"whyNot,omitempty"`
	Only       string          `json:"only,omitempty"` // the flag with which it can be intercepted nevertheless
	Intercepts []listIntercept `json:"intercepts,omitempty"`
}

// listIntercept is an intercept of a row.
type listIntercept struct {
	Name     string    `json:"name"`
	Laptop   string    `json:"laptop"` // USER@HOST
	Phase    string    `json:"phase"`
	Mode     string    `json:"mode"`
	Requests string    `json:"requests"`
	Agents   string    `json:"agents"`
	Since    time.Time `json:"since"`
}

// listOptions are the flags of `detour list`.
type listOptions struct {
	*globalOptions
	noArguments
	printFlags
}

func newListCommand(g *globalOptions) *cobra.Command {
	o := &listOptions{globalOptions: g, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List what can be intercepted, how, and who intercepts it",
		Args:    cobra.NoArgs,
		Example: "  detour list -n shop",
		Long: `Lists each port of the namespace's services: the workload behind it, whether it can be intercepted and
if not why, how its traffic reaches the agent, and who intercepts which requests in which mode.

The traffic reaches the agent by targetPort (the agent takes over the port's name), by nftables (rules
in the pod redirect it) or by attach (an agent that was attached to the running pods redirects it).

The reason why something cannot be intercepted is the one that ` + "`detour intercept`" + ` would give. If a
flag makes it possible nevertheless, the list names the flag.`,
		RunE: runE(o),
	}
	o.printFlags.AddFlags(cmd.Flags())
	return cmd
}

// Run prints the list.
func (o *listOptions) Run(ctx context.Context) error {
	all, err := o.targets(ctx)
	if err != nil {
		return err
	}
	rows := rowsOf(all)
	return o.Print(rows, func(w io.Writer) { printList(w, rows) })
}

// targets asks the daemon. If none runs, this process asks the cluster itself: a list needs no
// session, so it is no reason to start a daemon, which may need root.
func (o *listOptions) targets(ctx context.Context) ([]*daemonv1.Target, error) {
	loaded, packed, err := o.packKubeconfig()
	if err != nil {
		return nil, err
	}
	client, err := dialDaemon(ctx, o.paths)
	if err != nil {
		return targets.List(ctx, loaded.Config, loaded.Namespace)
	}
	defer client.Close()
	r, err := client.List(ctx, &daemonv1.ListRequest{
		Namespace:             loaded.Namespace,
		Kubeconfig:            packed,
		RequestTimeoutSeconds: loaded.Config.Timeout.Seconds(),
	})
	return r.GetTargets(), err
}

// rowsOf converts targets to what -o json and yaml print.
func rowsOf(all []*daemonv1.Target) []listRow {
	rows := []listRow{} // not nil: a script reads [] and not null
	for _, t := range all {
		row := listRow{
			Service: t.Service, Port: t.Port, Workload: t.Workload, Redirect: t.Redirect, Why: t.WhyNot, Only: t.Only,
		}
		for _, i := range t.Intercepts {
			row.Intercepts = append(row.Intercepts, listIntercept{
				Name:     i.Name,
				Laptop:   i.Laptop,
				Phase:    i.Phase,
				Mode:     i.Mode,
				Requests: i.Requests,
				Agents:   i.Agents,
				Since:    time.Unix(i.SinceUnix, 0),
			})
		}
		rows = append(rows, row)
	}
	return rows
}

func printList(w io.Writer, rows []listRow) {
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
		first := []string{orDash(r.Service), orDash(r.Port), orDash(r.Workload), able}
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
		cells[i] = termSafe(cells[i])
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}
