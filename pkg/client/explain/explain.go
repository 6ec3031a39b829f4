// Package explain turns errors of the Kubernetes API, and of the network between here and it, into
// one sentence for the user: what failed, why, and what to do. Start with Context.Error.
package explain

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/credential"
)

// Context is what the sentence needs beyond the error. The zero value of a field means unknown.
type Context struct {
	Doing     string // the action that failed, as in "list the services"
	Server    string // URL of the API server
	Namespace string
	// Role is what the user needs if the action is forbidden. Empty means RoleUser.
	Role Role
}

// Role names the rights that an action needs.
type Role string

// The roles that the chart creates, and cluster-admin to install it.
const (
	RoleUser    Role = "user"    // ClusterRole detour-user, bound in the namespace
	RoleConnect Role = "connect" // Role detour-connect in the traffic-manager's namespace
	RoleAdmin   Role = "admin"   // ClusterRole cluster-admin
)

// explained is an error with its sentence.
type explained struct {
	sentence string
	err      error
}

func (e *explained) Error() string { return e.sentence }
func (e *explained) Unwrap() error { return e.err }

// NotInstalled wraps err in the sentence that the cluster has no traffic-manager.
func NotInstalled(err error, what Context) error {
	return &explained{fmt.Sprintf("the traffic-manager is not installed in the cluster%s: run `detour install`, or "+
		"ask an administrator to", at(what)), err}
}

// Error is Context.Error with nothing but the action that failed, as in "list the services".
func Error(err error, doing string) error { return Context{Doing: doing}.Error(err) }

// Error returns err with a sentence for the user as its text. The cause stays in the chain of
// errors. It returns nil for nil, and an error that is explained already as it is.
func (what Context) Error(err error) error {
	var done *explained
	if err == nil || errors.As(err, &done) {
		return err
	}
	if s := sentence(err, what); s != "" {
		return &explained{s, err}
	}
	if what.Doing != "" {
		return &explained{what.Doing + ": " + err.Error(), err}
	}
	return err
}

func at(what Context) string {
	if what.Server == "" {
		return ""
	}
	return " at " + what.Server
}

func sentence(err error, what Context) string {
	var status apierrors.APIStatus
	switch {
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case meta.IsNoMatchError(err):
		return NotInstalled(err, what).Error()
	case errors.As(err, &status):
		return ofStatus(err, status.Status(), what)
	}
	return ofNetwork(err, what)
}

// ofStatus explains an error that the API server returned. It returns nothing for other errors.
func ofStatus(err error, status metav1.Status, what Context) string {
	where := at(what)
	switch {
	case foreign(err, status):
		return fmt.Sprintf("the server%s is not a Kubernetes API server: check the server in your kubeconfig, and "+
			"any proxy on the way to it", where)
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the cluster%s does not accept your credentials, because they have expired or are wrong: "+
			"log in again, and try `kubectl auth whoami`", where)
	case apierrors.IsForbidden(err):
		return forbidden(status, what)
	case apierrors.IsNotFound(err) && status.Details != nil && status.Details.Kind == "namespaces":
		return fmt.Sprintf("namespace %q does not exist in the cluster%s: choose another with --namespace",
			status.Details.Name, where)
	case apierrors.IsNotFound(err) && (status.Details == nil || status.Details.Name == ""):
		return NotInstalled(err, what).Error() // the API server does not know the resource
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("%s %q does not exist%s", singular(status.Details.Kind), status.Details.Name,
			inNamespace(what))
	case apierrors.IsInternalError(err), apierrors.IsServiceUnavailable(err), apierrors.IsServerTimeout(err),
		apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err):
		reason := oneLine(status.Message)
		// perhaps the page of a load balancer
		if apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) {
			reason = fmt.Sprintf("HTTP %d %s", status.Code, http.StatusText(int(status.Code)))
		}
		return fmt.Sprintf("the API server%s could not answer (%s): try again", where, reason)
	}
	return ""
}

// foreign reports whether the response cannot come from an API server: it is a web page, or it says
// that something does not exist that every API server has.
func foreign(err error, status metav1.Status) bool {
	switch status.Code {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false // a load balancer that cannot reach its API servers
	}
	cause, ok := apierrors.StatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
	return ok && (strings.Contains(cause.Message, "<") || apierrors.IsNotFound(err) &&
		status.Details.Group != detour.GroupVersion.Group)
}

func forbidden(status metav1.Status, what Context) string {
	refusal := "the API server refused: " + oneLine(status.Message)
	switch what.Role {
	case RoleConnect:
		return refusal + "; you need the Role detour-connect there: ask an administrator to add you to " +
			"connect.subjects of the chart"
	case RoleAdmin:
		return refusal + "; only an administrator of the cluster may do this"
	}
	namespace := what.Namespace
	if namespace == "" {
		namespace = "NAMESPACE"
	}
	return fmt.Sprintf("%s; you need the ClusterRole detour-user: ask an administrator to run "+
		"`kubectl create rolebinding detour-user --clusterrole=detour-user --user=YOU -n %s`", refusal, namespace)
}

// ofNetwork explains why there was no response.
func ofNetwork(err error, what Context) string {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		dns       *net.DNSError
		timeout   interface{ Timeout() bool }
		reached   *url.Error
		op        *net.OpError
	)
	unreachable := func(why string) string {
		return fmt.Sprintf("the cluster%s cannot be reached, %s: check the network, the VPN and the context of your "+
			"kubeconfig", at(what), why)
	}
	switch {
	case strings.Contains(err.Error(), "getting credentials:"):
		_, why, _ := strings.Cut(err.Error(), "getting credentials: ")
		return ofPlugin(why)
	case errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid):
		return fmt.Sprintf("the certificate of the API server%s is not trusted by your kubeconfig (%s): get a new "+
			"kubeconfig", at(what), oneLine(root(err).Error()))
	case errors.As(err, &dns):
		return unreachable(fmt.Sprintf("its name %s does not resolve", dns.Name))
	case errors.Is(err, syscall.ECONNREFUSED):
		return unreachable("nothing listens there")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err,
		os.ErrDeadlineExceeded):
		return unreachable("it does not respond in time")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return unreachable("the connection was closed")
	case errors.As(err, &op), errors.As(err, &reached):
		return unreachable(oneLine(root(err).Error()))
	}
	return ""
}

// ofPlugin explains why a credential plugin returned no credential. Client-go explains it in
// several paragraphs, or with a message of its decoder.
func ofPlugin(why string) string {
	const plugin, try = "the credential plugin of your kubeconfig", ": run it by hand; `kubectl config view " +
		"--minify` shows its command line"
	first, rest, _ := strings.Cut(why, "\n")
	if command, ok := strings.CutSuffix(first, " not found"); ok {
		// the hint of the kubeconfig comes after the general one
		_, hint, _ := strings.Cut(rest, "#client-go-credential-plugins")
		command = strings.TrimPrefix(command, "exec: executable ")
		return fmt.Sprintf("%s, %s, is not found: %s", plugin, command, cmp.Or(oneLine(hint), "install it, or add "+
			"its directory to PATH"))
	}
	if strings.HasPrefix(first, "decoding stdout:") {
		return plugin + " did not print a credential" + try
	}
	// Root's daemon starts plugins through a process of its own.
	if strings.HasPrefix(first, "exec: executable "+credential.Self+" failed") {
		return plugin + " failed: the daemon's log says why"
	}
	return plugin + " failed (" + strings.TrimPrefix(first, "exec: ") + ")" + try
}

// root returns the innermost error.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

func inNamespace(what Context) string {
	if what.Namespace == "" {
		return ""
	}
	return " in namespace " + what.Namespace
}

func singular(kind string) string {
	kind, _, _ = strings.Cut(kind, ".")
	return strings.TrimSuffix(kind, "s")
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
