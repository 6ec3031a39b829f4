// Package explain turns errors of the Kubernetes API and of the way to it into one sentence for the user: what, why, what to do.
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

// Context is what the sentence needs to know beyond the error. The zero value of each field means unknown.
type Context struct {
	Doing     string // what failed, as in "list the services"
	Server    string // URL of the API server
	Namespace string
	// Role is what a forbidden user needs; RoleUser when empty.
	Role Role
}

// Role says which right a forbidden user lacks.
type Role string

// The roles that the chart ships, and cluster-admin for what installs it.
const (
	RoleUser    Role = "user"    // ClusterRole detour-user, bound in the namespace
	RoleConnect Role = "connect" // Role detour-connect in the traffic-manager's namespace
	RoleAdmin   Role = "admin"   // whoever may install
)

// explained is an error with its sentence.
type explained struct {
	sentence string
	err      error
}

func (e *explained) Error() string { return e.sentence }
func (e *explained) Unwrap() error { return e.err }

// NotInstalled says that the cluster has no traffic-manager.
func NotInstalled(err error, what Context) error {
	return &explained{fmt.Sprintf("the traffic-manager is not installed in the cluster%s: run `detour install`, or ask an administrator to", at(what)), err}
}

// Error is err as a sentence; doing is what failed, as in "list the services". See Context.Error.
func Error(err error, doing string) error { return Context{Doing: doing}.Error(err) }

// Error is err as a sentence. It is nil for nil, and what has been explained is left as it is.
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

// ofStatus explains what the API server answered.
func ofStatus(err error, status metav1.Status, what Context) string {
	where := at(what)
	switch {
	case foreign(err, status):
		return fmt.Sprintf("what answers%s is no API server of Kubernetes: check the server in your kubeconfig, and what is between here and it", where)
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the cluster%s does not accept your credentials, they have expired or are wrong: log in again, and try `kubectl auth whoami`", where)
	case apierrors.IsForbidden(err):
		return forbidden(status, what)
	case apierrors.IsNotFound(err) && status.Details != nil && status.Details.Kind == "namespaces":
		return fmt.Sprintf("namespace %q does not exist in the cluster%s: choose another with --namespace", status.Details.Name, where)
	case apierrors.IsNotFound(err) && (status.Details == nil || status.Details.Name == ""):
		return NotInstalled(err, what).Error() // the API server does not know the resource at all
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("%s %q does not exist%s", singular(status.Details.Kind), status.Details.Name, inNamespace(what))
	case apierrors.IsInternalError(err), apierrors.IsServiceUnavailable(err), apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err):
		said := oneLine(status.Message)
		if apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) { // perhaps the page of a load balancer
			said = fmt.Sprintf("HTTP %d %s", status.Code, http.StatusText(int(status.Code)))
		}
		return fmt.Sprintf("the API server%s could not answer (%s): try again", where, said)
	}
	return ""
}

// foreign says that no API server answers so: a web page, or the absence of what each of them has.
func foreign(err error, status metav1.Status) bool {
	switch status.Code {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false // a load balancer whose API servers are away
	}
	said, ok := apierrors.StatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
	return ok && (strings.Contains(said.Message, "<") || apierrors.IsNotFound(err) && status.Details.Group != detour.GroupVersion.Group)
}

func forbidden(status metav1.Status, what Context) string {
	said := "the API server refused: " + oneLine(status.Message)
	switch what.Role {
	case RoleConnect:
		return said + "; you need the Role detour-connect there: ask an administrator to add you to connect.subjects of the chart"
	case RoleAdmin:
		return said + "; this needs an administrator of the cluster"
	}
	namespace := what.Namespace
	if namespace == "" {
		namespace = "NAMESPACE"
	}
	return fmt.Sprintf("%s; you need the ClusterRole detour-user: ask an administrator for `kubectl create rolebinding detour-user --clusterrole=detour-user --user=YOU -n %s`", said, namespace)
}

// ofNetwork explains why there was no answer.
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
		return fmt.Sprintf("the cluster%s cannot be reached, %s: check the network, the VPN and the context of your kubeconfig", at(what), why)
	}
	switch {
	case strings.Contains(err.Error(), "getting credentials:"):
		_, why, _ := strings.Cut(err.Error(), "getting credentials: ")
		return ofPlugin(why)
	case errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid):
		return fmt.Sprintf("the certificate of the API server%s is not trusted by your kubeconfig (%s): get a new kubeconfig", at(what), oneLine(root(err).Error()))
	case errors.As(err, &dns):
		return unreachable(fmt.Sprintf("its name %s is not known", dns.Name))
	case errors.Is(err, syscall.ECONNREFUSED):
		return unreachable("nothing listens there")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded):
		return unreachable("it does not answer in time")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return unreachable("the connection was closed")
	case errors.As(err, &op), errors.As(err, &reached):
		return unreachable(oneLine(root(err).Error()))
	}
	return ""
}

// ofPlugin explains why a credential plugin gave no credential. Client-go says it in paragraphs, or as its decoder does.
func ofPlugin(why string) string {
	const whose, try = "the credential plugin of your kubeconfig", ": try it by hand, `kubectl config view --minify` shows how it is called"
	first, rest, _ := strings.Cut(why, "\n")
	if command, ok := strings.CutSuffix(first, " not found"); ok {
		_, hint, _ := strings.Cut(rest, "#client-go-credential-plugins") // the kubeconfig's own comes after the general one
		command = strings.TrimPrefix(command, "exec: executable ")
		return fmt.Sprintf("%s, %s, is not found: %s", whose, command, cmp.Or(oneLine(hint), "install it, or add its directory to PATH"))
	}
	if strings.HasPrefix(first, "decoding stdout:") {
		return whose + " printed what is no credential" + try
	}
	// The daemon of root starts plugins by way of itself.
	if _, ours := strings.CutPrefix(first, "exec: executable "+credential.Self+" failed"); ours {
		return whose + " failed: the daemon's log says why"
	}
	return whose + " failed (" + strings.TrimPrefix(first, "exec: ") + ")" + try
}

// root is the innermost error.
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
