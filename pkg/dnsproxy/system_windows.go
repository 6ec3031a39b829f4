package dnsproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
)

// nrptComment marks detour's rules in the name resolution policy table.
const nrptComment = "detour"

// windows asks the proxy for each suffix in the cluster's search path, by rules of the name
// resolution policy table (NRPT). Other names do not reach the proxy. It builds but was never
// tried.
type windows struct{}

// FindSystem returns the name resolution of this laptop.
func FindSystem(context.Context, ResolvConf, *slog.Logger) System { return windows{} }

// PutBack undoes what an earlier process has set.
func PutBack(ResolvConf) error { return windows{}.Restore() }

func (windows) Keep() error { return nil }

func (windows) Upstream() ([]string, error) { return nil, nil }

func (w windows) Set(_ string, server netip.Addr, search []string) error {
	if err := w.Restore(); err != nil {
		return err
	}
	var names []string
	for _, s := range search {
		names = append(names, "'."+s+"'")
	}
	return powershell(fmt.Sprintf("Add-DnsClientNrptRule -Namespace %s -NameServers '%s' -Comment '%s'",
		strings.Join(names, ","), server, nrptComment))
}

func (windows) Restore() error {
	return powershell(fmt.Sprintf("Get-DnsClientNrptRule | Where-Object Comment -eq '%s' | "+
		"Remove-DnsClientNrptRule -Force; Clear-DnsClientCache", nrptComment))
}

func powershell(script string) error {
	out, err := exec.Command("powershell.exe", "-NoProfile", "-NonInteractive", "-Command", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("change the name resolution policy: %w: %s", err, out)
	}
	return nil
}
