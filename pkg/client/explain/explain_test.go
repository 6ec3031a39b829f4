package explain_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/detour-dev/detour/pkg/client/explain"
)

const notAnAPIServer = "the server at https://k8s.example:6443 is not a Kubernetes API server: check the server in " +
	"your kubeconfig, and any proxy on the way to it"

// genericResponse is client-go's error for a response that is not a Status.
func genericResponse(code int, group, resource, body string) error {
	return apierrors.NewGenericServerResponse(code, http.MethodGet, schema.GroupResource{
		Group:    group,
		Resource: resource,
	}, "", body, 0, true)
}

func TestErrorsBecomeSentences(t *testing.T) {
	shop := explain.Context{Doing: "list the services", Server: "https://k8s.example:6443", Namespace: "shop"}
	sessions := schema.GroupResource{Group: "detour.dev", Resource: "sessions"}
	noResource := &apierrors.StatusError{ErrStatus: metav1.Status{
		Code:   http.StatusNotFound,
		Reason: metav1.StatusReasonNotFound, Message: "the server could not find the requested resource",
		Details: &metav1.StatusDetails{Group: "detour.dev", Kind: "sessions"},
	}}
	for name, c := range map[string]struct {
		err  error
		what explain.Context
		want string
	}{
		"expired token": {
			apierrors.NewUnauthorized("Unauthorized"), shop,
			"the cluster at https://k8s.example:6443 does not accept your credentials, because they have expired or " +
				"are wrong: log in again, and try `kubectl auth whoami`",
		},
		"no right in the namespace": {
			apierrors.NewForbidden(sessions, "", errors.New(`User "eve" cannot create resource`)), shop,
			"the API server refused: sessions.detour.dev is forbidden: User \"eve\" cannot create resource; you " +
				"need the ClusterRole detour-user: ask an administrator to run " +
				"`kubectl create rolebinding detour-user --clusterrole=detour-user --user=YOU -n shop`",
		},
		"no right to the tunnel": {
			apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "traffic-manager:tunnel",
				errors.New("no")),
			explain.Context{Role: explain.RoleConnect},
			`the API server refused: services "traffic-manager:tunnel" is forbidden: no; you need the Role ` +
				`detour-connect there: ask an administrator to add you to connect.subjects of the chart`,
		},
		"no such namespace": {
			apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "shop"), shop,
			`namespace "shop" does not exist in the cluster at https://k8s.example:6443: choose another with ` +
				`--namespace`,
		},
		"no such object": {
			apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, "catalog"), shop,
			`service "catalog" does not exist in namespace shop`,
		},
		"no custom resources": {
			fmt.Errorf("create the session: %w", noResource), shop,
			"the traffic-manager is not installed in the cluster at https://k8s.example:6443: run `detour install`, " +
				"or ask an administrator to",
		},
		"interrupted":    {fmt.Errorf("watch: %w", context.Canceled), shop, "cancelled"},
		"something else": {errors.New("odd"), shop, "list the services: odd"},
		"plugin is absent": {errors.New("Get \"https://k8s\": getting credentials: exec: executable login " +
			"not found"), shop, "the credential plugin of your kubeconfig, login, is not found: install it, or add " +
			"its directory to PATH"},
		"plugin is absent, first": {
			err: errors.New("Get \"https://k8s\": getting credentials: exec: executable login " +
				"not found\n\nIt looks like\n\nTo learn more: https://kubernetes.io/#client-go-credential-plugins"),
			what: shop,
			want: "the credential plugin of your kubeconfig, login, is not found: install it, or add " +
				"its directory to PATH",
		},
		"plugin with a hint": {
			err: errors.New("Get \"https://k8s\": getting credentials: exec: executable login " +
				"not found\n\nIt looks like\n\nTo learn more: " +
				"https://kubernetes.io/#client-go-credential-plugins\n\nget it from\nlogin.example"),
			what: shop,
			want: "the credential plugin of your kubeconfig, login, is not found: get it from login.example",
		},
		"plugin fails": {
			err:  errors.New("getting credentials: exec: executable login failed with exit code 3"),
			what: shop,
			want: "the credential plugin of your kubeconfig failed (executable login failed with exit code 3): run " +
				"it by hand; `kubectl config view --minify` shows its command line",
		},
		"plugin of root's daemon": {errors.New("getting credentials: exec: executable /proc/self/exe failed with " +
			"exit code 3"), shop, "the credential plugin of your kubeconfig failed: the daemon's log says why"},
		"plugin talks": {
			err: errors.New(`getting credentials: decoding stdout: couldn't get version/kind; json parse error: ` +
				`json: cannot unmarshal string into Go value of type struct { APIVersion string ` +
				`"json:\"apiVersion,omitempty\"" }`),
			what: shop,
			want: "the credential plugin of your kubeconfig did not print a credential: run it by hand; `kubectl " +
				"config view --minify` shows its command line",
		},
		"a web page": {
			err: genericResponse(http.StatusNotImplemented, "detour.dev", "sessions", "<!DOCTYPE HTML>\n<html "+
				"lang=\"en\">"),
			what: shop,
			want: notAnAPIServer,
		},
		"a web page not found": {
			err:  genericResponse(http.StatusNotFound, "detour.dev", "sessions", "<!DOCTYPE HTML>"),
			what: shop,
			want: notAnAPIServer,
		},
		"a load balancer's page": {
			err:  genericResponse(http.StatusBadGateway, "", "services", "<html>"),
			what: shop,
			want: "the API server at https://k8s.example:6443 could not answer (HTTP 502 Bad Gateway): try again",
		},
		"a login page": {
			err:  genericResponse(http.StatusForbidden, "detour.dev", "sessions", "<html>"),
			what: shop,
			want: notAnAPIServer,
		},
		"no services": {
			err:  genericResponse(http.StatusNotFound, "", "services", "404 page not found"),
			what: shop,
			want: notAnAPIServer,
		},
		"no API group": {
			err:  genericResponse(http.StatusNotFound, "detour.dev", "sessions", "404 page not found"),
			what: shop,
			want: "the traffic-manager is not installed in the cluster at https://k8s.example:6443: run `detour " +
				"install`, or ask an administrator to",
		},
		"not ready": {
			err:  genericResponse(http.StatusServiceUnavailable, "", "services", "apiserver not ready"),
			what: shop,
			want: "the API server at https://k8s.example:6443 could not answer (HTTP 503 Service Unavailable): try " +
				"again",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.what.Error(c.err)
			require.EqualError(t, got, c.want)
			assert.ErrorIs(t, got, c.err, "the cause stays in the chain")
			assert.Equal(t, got, explain.Error(got, "try again"), "an explained error stays as it is")
		})
	}
	require.NoError(t, shop.Error(nil))
}

func TestNothingListensAtTheServer(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	where := server.URL
	server.Close()
	_, err := http.Get(where) //nolint:bodyclose // it fails
	require.EqualError(t, explain.Context{Server: where}.Error(err),
		"the cluster at "+where+" cannot be reached, nothing listens there: check the network, the VPN and the "+
			"context of your kubeconfig")
}

func TestUntrustedCertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // the handshake fails, as it should
	server.StartTLS()
	defer server.Close()
	_, err := http.Get(server.URL) //nolint:bodyclose // it fails
	require.ErrorContains(t, explain.Error(err, "connect"), "is not trusted by your kubeconfig")
}
