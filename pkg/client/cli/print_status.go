package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// printStatusRow prints one row of `detour status`. A row without a title belongs to the row above
// it.
func printStatusRow(w io.Writer, title, text string) {
	fmt.Fprintf(w, "%-11s %s\n", title, text)
}

func printStatus(out io.Writer, s *daemonv1.StatusResponse) {
	w := termSafeWriter{out}
	if !s.Connected {
		fmt.Fprintln(w, "not connected")
		if s.Problem != "" {
			printStatusRow(w, "problem", s.Problem)
		}
		return
	}
	printStatusRow(w, "connected", fmt.Sprintf("context %s, namespace %s (%s)", s.Context, s.Namespace, s.Server))
	printStatusRow(w, "tunnel", describeTunnel(s))
	printStatusRow(w, "interface", describeInterface(s))
	printStatusRow(w, "networks", describeNetworks(s))
	printStatusRow(w, "DNS", fmt.Sprintf("%s (%s)", strings.Join(s.DnsServers, ", "), s.ClusterDomain))
	printStatusRow(w, "session", fmt.Sprintf("%s (%s@%s)", s.Session, s.User, s.Host))
	if s.TunnelUp && s.Problem != "" {
		printStatusRow(w, "problem", s.Problem)
	}
	if len(s.Intercepts) == 0 {
		printStatusRow(w, "intercepts", "none")
	}
	for _, i := range s.Intercepts {
		printStatusOfIntercept(w, i)
	}
}

func describeTunnel(s *daemonv1.StatusResponse) string {
	if !s.TunnelUp {
		return "DOWN: " + s.Problem
	}
	text := "up, " + s.Transport
	if s.TransportAddress != "" {
		text += " to " + s.TransportAddress
	}
	if s.TransportSinceUnix > 0 {
		text += " since " + time.Unix(s.TransportSinceUnix, 0).Format(time.DateTime)
	}
	if s.RttSeconds > 0 {
		rtt := time.Duration(s.RttSeconds * float64(time.Second))
		text += fmt.Sprintf(", round trip %s", rtt.Round(10*time.Microsecond))
	}
	return text
}

func describeInterface(s *daemonv1.StatusResponse) string {
	text := fmt.Sprintf("%s, %s", s.Interface, strings.Join(s.Addresses, ", "))
	if s.Rootless {
		text += ", in namespaces: `detour run -- COMMAND`"
	}
	return text
}

// describeNetworks lists the cluster's networks with the user's changes.
func describeNetworks(s *daemonv1.StatusResponse) string {
	text := strings.Join(s.Subnets, ", ")
	for _, m := range s.Mapped {
		network, seen, _ := strings.Cut(m, "=")
		text += fmt.Sprintf(" (%s is seen at %s)", network, seen)
	}
	for _, p := range s.GetNetworkOverrides().GetAlsoProxy() {
		text += ", also " + p
	}
	for _, p := range s.GetNetworkOverrides().GetNeverProxy() {
		text += ", never " + p
	}
	return text
}

func printStatusOfIntercept(w io.Writer, i *daemonv1.Intercept) {
	if i.LocalPort == 0 {
		printStatusRow(w, "intercept", fmt.Sprintf("%s, %s", i.Workload, i.Phase))
	} else {
		printStatusRow(w, "intercept", fmt.Sprintf("service %s (%s) -> 127.0.0.1:%d, %s, agents %s",
			i.Service, orDash(i.Workload), i.LocalPort, i.Phase, orDash(i.Agents)))
	}
	if i.Message != "" && i.Phase != string(detour.PhaseActive) {
		printStatusRow(w, "", i.Message)
	}
	if mode := describeMode(i); mode != "" {
		printStatusRow(w, "", "mode "+mode)
	}
	if i.Personal {
		printStatusRow(w, "", "only "+i.Requests)
	}
	if i.Dropped > 0 {
		printStatusRow(w, "", fmt.Sprintf("%d copies were dropped because this laptop did not take them in time",
			i.Dropped))
	}
}

// describeMode returns nothing for the usual mode.
func describeMode(i *daemonv1.Intercept) string {
	switch i.Mode {
	case string(detour.ModeWiretap):
		return "wiretap"
	case string(detour.ModeIngest):
		return "ingest: " + i.Requests
	case string(detour.ModeReplace):
		if i.Container == "" { // the traffic-manager has not looked at it yet
			return "replace"
		}
		return fmt.Sprintf("replace: container %s does not run", i.Container)
	}
	return ""
}
