package kubeconfig

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/detour-dev/detour/pkg/client/explain"
)

// Loaded is the cluster, the context and the namespace that a command means.
type Loaded struct {
	Config             *rest.Config
	Context, Namespace string
}

// nowhere is the server that client-go uses if the configuration names none.
const nowhere = "http://localhost:8080"

// Load reads files, flags and environment. It reports all mistakes in them, before any request to
// the cluster. The errors are sentences for the user.
func Load(flags *genericclioptions.ConfigFlags) (*Loaded, error) {
	if _, err := clientcmd.ParseTimeout(*flags.Timeout); err != nil {
		return nil, fmt.Errorf("--request-timeout %s is not a duration: write for example --request-timeout 30s",
			*flags.Timeout)
	}
	loader := flags.ToRawKubeConfigLoader()
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, unusable(err)
	}
	context := cmp.Or(*flags.Context, raw.CurrentContext)
	if err := known(&raw, context, *flags.ClusterName, *flags.AuthInfoName); err != nil {
		return nil, err
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, unusable(err)
	}
	if config.Host == nowhere && *flags.APIServer == "" {
		if err := leads(&raw, context, *flags.ClusterName, *flags.KubeConfig); err != nil {
			return nil, err
		}
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, unusable(err)
	}
	if err := explain.Name("--namespace", namespace); err != nil {
		return nil, err
	}
	if _, _, err := rest.DefaultServerUrlFor(config); err != nil {
		return nil, fmt.Errorf("the address of the API server, %q, is not a valid URL: "+
			"fix it in the kubeconfig or in --server, as in https://k8s.example.com:6443", config.Host)
	}
	if config.AuthProvider != nil {
		return nil, fmt.Errorf("the kubeconfig uses the auth provider %q, which Kubernetes no longer supports: "+
			"use its credential plugin",
			config.AuthProvider.Name)
	}
	if _, err := rest.TLSConfigFor(config); err != nil {
		return nil, unusable(err)
	}
	return &Loaded{Config: config, Context: context, Namespace: namespace}, nil
}

// unusable explains why the kubeconfig cannot be used.
func unusable(err error) error {
	why := strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "invalid configuration: ")
	return fmt.Errorf("the kubeconfig cannot be used (%s): fix it, or choose another with --kubeconfig", why)
}

// known rejects names that the kubeconfig lacks.
func known(raw *api.Config, context, cluster, user string) error {
	for _, c := range []struct {
		kind, name string
		there      bool
	}{
		{"context", context, raw.Contexts[context] != nil},
		{"cluster", cluster, raw.Clusters[cluster] != nil},
		{"user", user, raw.AuthInfos[user] != nil},
	} {
		if c.name != "" && !c.there {
			return fmt.Errorf("%s %q does not exist in the kubeconfig: "+
				"`kubectl config get-%ss` lists the valid names", c.kind, c.name, c.kind)
		}
	}
	return nil
}

// leads returns an error if the kubeconfig does not lead to an API server.
func leads(raw *api.Config, context, cluster, file string) error {
	if c := raw.Contexts[context]; c != nil {
		cluster = cmp.Or(cluster, c.Cluster)
	}
	if c := raw.Clusters[cluster]; c != nil && c.Server != "" {
		return nil
	}
	files := filepath.SplitList(os.Getenv("KUBECONFIG"))
	if file != "" {
		files = []string{file}
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	switch {
	case cluster != "":
		return fmt.Errorf("cluster %q in the kubeconfig has no server: "+
			"add it with `kubectl config set-cluster %s --server=URL`, or choose another context with --context",
			cluster, cluster)
	case context != "":
		return fmt.Errorf("context %q in the kubeconfig names no cluster: choose another with --context", context)
	case len(raw.Contexts) > 0:
		return errors.New("the kubeconfig has no current context: " +
			"choose one with `kubectl config use-context NAME`, or use --context")
	case len(files) == 0:
		return errors.New("no cluster is configured: set KUBECONFIG or use --kubeconfig")
	case !slices.ContainsFunc(files, there):
		return fmt.Errorf("KUBECONFIG names %s, but no such file exists: "+
			"set it to an existing file, or use --kubeconfig", strings.Join(files, " and "))
	}
	return fmt.Errorf("the kubeconfig %s names no cluster: choose another with --kubeconfig",
		strings.Join(files, " and "))
}
