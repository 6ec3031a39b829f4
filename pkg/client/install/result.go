package install

import (
	"fmt"
	"io"
)

// The actions of a Result.
const (
	actionInstalled = "installed"
	actionUpgraded  = "upgraded"
	actionRemoved   = "removed"
	actionNone      = "none" // there was nothing to remove
)

// Result says what install or uninstall did. Scripts read it with -o.
type Result struct {
	Namespace        string   `json:"namespace"`
	Action           string   `json:"action"`
	Sessions         int      `json:"sessionsEnded,omitempty"`
	Intercepts       int      `json:"interceptsEnded,omitempty"`
	Workloads        []string `json:"workloadsRolledBack,omitempty"`
	NamespaceRemoved bool     `json:"namespaceRemoved,omitempty"`
}

func (r Result) printText(w io.Writer) {
	switch r.Action {
	case actionInstalled:
		fmt.Fprintf(w, "installed the traffic-manager in namespace %s\n", r.Namespace)
		fmt.Fprintln(w, "to let a developer use it: kubectl -n NAMESPACE create rolebinding detour "+
			"--clusterrole=detour-user --user=NAME")
	case actionUpgraded:
		fmt.Fprintf(w, "upgraded the traffic-manager in namespace %s\n", r.Namespace)
	case actionRemoved:
		if r.Sessions > 0 {
			fmt.Fprintf(w, "ended %d session(s) and %d intercept(s)\n", r.Sessions, r.Intercepts)
		}
		fmt.Fprintln(w, "removed the traffic-manager, its webhook, roles and custom resources")
	default:
		fmt.Fprintf(w, "no traffic-manager is installed in namespace %s\n", r.Namespace)
	}
	if r.NamespaceRemoved {
		fmt.Fprintf(w, "removed the namespace %s\n", r.Namespace)
	}
}
