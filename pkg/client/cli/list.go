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
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/client/targets"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
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
	all, err := targets.List(ctx, loaded.Config, loaded.Namespace)
	if err != nil {
		return nil, err
	}
	return rowsOf(all), nil
}

// rowsOf converts the targets to what -o json prints.
func rowsOf(all []*daemonv1.Target) []listed {
	rows := []listed{} // not nil: a script reads [] and not null
	for _, t := range all {
		row := listed{Service: t.Service, Port: t.Port, Workload: t.Workload, Redirect: t.Redirect, Why: t.WhyNot, Only: t.Only}
		for _, i := range t.Intercepts {
			row.Intercepts = append(row.Intercepts, holder{
				Name: i.Name, Laptop: i.Laptop, Phase: i.Phase, Mode: i.Mode, Requests: i.Requests, Agents: i.Agents, Since: time.Unix(i.SinceUnix, 0),
			})
		}
		rows = append(rows, row)
	}
	return rows
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
