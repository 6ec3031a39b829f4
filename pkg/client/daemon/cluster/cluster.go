// Package cluster is the daemon's view of the API server: a client for the objects of one session,
// and a watch of the session and its intercepts. Start with Connect and Client.Watch.
package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/client/explain"
)

const (
	// DefaultRequestTimeout bounds a request to the API server if the user sets no
	// --request-timeout.
	DefaultRequestTimeout = 30 * time.Second
	// shortTimeout bounds a request without which the laptop can disconnect.
	shortTimeout = 5 * time.Second
)

// Client talks to the API server with one set of credentials, about one namespace. Its requests end
// with their contexts, even while a credential plugin hangs.
type Client struct {
	// Client reads and writes Sessions and Intercepts.
	client.Client
	// Core reads the objects of Kubernetes itself.
	Core kubernetes.Interface
	// Config bounds each request. Callers must not change it.
	Config *rest.Config
	// Server is the URL of the API server.
	Server, Namespace string

	watching client.WithWatch // without a timeout
	hangUp   func()           // closes idle connections
	log      *slog.Logger
}

// Connect returns a client. timeout bounds each request; 0 means the default. No request is made
// yet.
func Connect(config *rest.Config, namespace string, timeout time.Duration, log *slog.Logger) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := detour.AddToScheme(scheme); err != nil {
		return nil, err
	}
	// No discovery: the user may lack the right to it, and the types are known.
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"Session", "Intercept"} {
		mapper.Add(detour.GroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	options := client.Options{Scheme: scheme, Mapper: mapper}

	c := &Client{Config: rest.CopyConfig(config), Server: config.Host, Namespace: namespace, log: log}
	if c.Config.Timeout = timeout; timeout == 0 {
		c.Config.Timeout = DefaultRequestTimeout
	}
	web, err := credential.HTTPClient(c.Config)
	if err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}
	options.HTTPClient = web
	if c.Client, err = client.New(c.Config, options); err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}
	if c.Core, err = kubernetes.NewForConfigAndClient(c.Config, web); err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}

	unbounded := rest.CopyConfig(config)
	unbounded.Timeout = 0
	if web, err = credential.HTTPClient(unbounded); err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}
	options.HTTPClient = web
	if c.watching, err = client.NewWithWatch(unbounded, options); err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}
	c.hangUp = func() { net.CloseIdleConnectionsFor(web.Transport) }
	return c, nil
}

// WithShortTimeout makes a request without which the laptop can disconnect.
func WithShortTimeout(ctx context.Context, request func(context.Context) error) error {
	ctx, done := context.WithTimeout(ctx, shortTimeout)
	defer done()
	return request(ctx)
}

// IsSilent reports whether an error means that the API server did not answer.
func IsSilent(err error) bool {
	var unreached *url.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &unreached)
}

// IsAbsent reports whether the API server itself has answered that an object does not exist. A
// proxy in front of it, such as a load balancer without a backend, may answer 404 to everything;
// the API server answers likewise once the object's kind has been deleted.
func IsAbsent(err error) bool {
	return apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

// ObjectName makes a name that Kubernetes accepts (RFC 1123) from a person's or a service's.
func ObjectName(s string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteRune(c)
		} else if b.Len() > 0 {
			b.WriteByte('-')
		}
	}
	name := strings.Trim(b.String(), "-")
	if name == "" {
		return "laptop"
	}
	return name[:min(len(name), 40)]
}
