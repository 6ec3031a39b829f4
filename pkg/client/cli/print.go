package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func (a *app) checkOutput() error {
	switch a.output {
	case "", "json", "yaml":
		return nil
	}
	return fmt.Errorf("-o %s is not known: use json or yaml", a.output)
}

// output is the -o flag for commands of other packages.
type output struct{ *app }

func (o output) Flag(cmd *cobra.Command)                       { o.outputFlag(cmd) }
func (o output) Check() error                                  { return o.checkOutput() }
func (o output) Print(value any, people func(io.Writer)) error { return o.print(value, people) }

// print writes a value as the -o flag asks, or for people.
func (a *app) print(value any, people func(io.Writer)) error {
	return a.printTo(a.Out, value, people)
}

func (a *app) printTo(w io.Writer, value any, people func(io.Writer)) error {
	if a.output == "" {
		people(w)
		return nil
	}
	var raw []byte
	var err error
	if m, ok := value.(proto.Message); ok {
		if raw, err = (protojson.MarshalOptions{EmitUnpopulated: true}).Marshal(m); err == nil {
			// protojson varies its blanks on purpose; a second pass makes the output stable.
			var v any
			if err = json.Unmarshal(raw, &v); err == nil {
				raw, err = json.MarshalIndent(v, "", "  ")
			}
		}
	} else {
		raw, err = json.MarshalIndent(value, "", "  ")
	}
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	if a.output == "yaml" {
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return fmt.Errorf("encode the output: %w", err)
		}
		_, err = w.Write(raw)
		return err
	}
	_, err = fmt.Fprintln(w, string(raw))
	return err
}

// networks are the cluster's, with what the user wants otherwise.
func networks(s *daemonv1.StatusResponse) string {
	text := strings.Join(s.Subnets, ", ")
	for _, m := range s.Mapped {
		real, seen, _ := strings.Cut(m, "=")
		text += fmt.Sprintf(" (%s is seen at %s)", real, seen)
	}
	for _, p := range s.GetNetworkOverrides().GetAlsoProxy() {
		text += ", also " + p
	}
	for _, p := range s.GetNetworkOverrides().GetNeverProxy() {
		text += ", never " + p
	}
	return text
}

func printStatus(out io.Writer, s *daemonv1.StatusResponse) {
	w := harmlessly{out} // parts of it other people have written
	if !s.Connected {
		fmt.Fprintln(w, "not connected")
		if s.Problem != "" {
			fmt.Fprintln(w, "problem    ", s.Problem)
		}
		return
	}
	tunnel := "up, " + s.Transport
	if s.TransportAddress != "" {
		tunnel += " to " + s.TransportAddress
	}
	if s.TransportSinceUnix > 0 {
		tunnel += " since " + time.Unix(s.TransportSinceUnix, 0).Format(time.DateTime)
	}
	if s.RttSeconds > 0 {
		tunnel += fmt.Sprintf(", round trip %s", time.Duration(s.RttSeconds*float64(time.Second)).Round(10*time.Microsecond))
	}
	if !s.TunnelUp {
		tunnel = "DOWN: " + s.Problem
	}
	where := ""
	if s.Rootless {
		where = ", in namespaces: `detour run -- COMMAND`"
	}
	rows := [][2]string{
		{"connected", fmt.Sprintf("context %s, namespace %s (%s)", s.Context, s.Namespace, s.Server)},
		{"tunnel", tunnel},
		{"interface", fmt.Sprintf("%s, %s%s", s.Interface, strings.Join(s.Addresses, ", "), where)},
		{"networks", networks(s)},
		{"DNS", fmt.Sprintf("%s (%s)", strings.Join(s.DnsServers, ", "), s.ClusterDomain)},
		{"session", fmt.Sprintf("%s (%s@%s)", s.Session, s.User, s.Host)},
	}
	for _, r := range rows {
		fmt.Fprintf(w, "%-11s %s\n", r[0], r[1])
	}
	if s.TunnelUp && s.Problem != "" {
		fmt.Fprintf(w, "%-11s %s\n", "problem", s.Problem)
	}
	if len(s.Intercepts) == 0 {
		fmt.Fprintln(w, "intercepts  none")
	}
	for _, i := range s.Intercepts {
		if i.LocalPort == 0 {
			fmt.Fprintf(w, "intercept   %s, %s\n", i.Workload, i.Phase)
		} else {
			fmt.Fprintf(w, "intercept   service %s (%s) -> 127.0.0.1:%d, %s, agents %s\n", i.Service, cell(i.Workload), i.LocalPort, i.Phase, cell(i.Agents))
		}
		if i.Message != "" && i.Phase != string(detour.PhaseActive) {
			fmt.Fprintf(w, "%-11s %s\n", "", i.Message)
		}
		switch i.Mode {
		case string(detour.ModeWiretap):
			fmt.Fprintf(w, "%-11s mode wiretap\n", "")
		case string(detour.ModeIngest):
			fmt.Fprintf(w, "%-11s mode ingest: %s\n", "", i.Requests)
		case string(detour.ModeReplace):
			if i.Container == "" { // it is not looked at yet
				fmt.Fprintf(w, "%-11s mode replace\n", "")
			} else {
				fmt.Fprintf(w, "%-11s mode replace: container %s does not run\n", "", i.Container)
			}
		}
		if i.Personal {
			fmt.Fprintf(w, "%-11s only %s\n", "", i.Requests)
		}
		if i.Dropped > 0 {
			fmt.Fprintf(w, "%-11s %d copies were dropped, because this laptop did not take them in time\n", "", i.Dropped)
		}
	}
}
