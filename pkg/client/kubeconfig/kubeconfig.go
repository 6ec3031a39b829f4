// Package kubeconfig packs what a command was told of the cluster, by files, flags and environment, into one kubeconfig that stands
// alone: the daemon, another process and perhaps another user, acts with exactly the caller's access.
package kubeconfig

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/detour-dev/detour/pkg/client/credential"
)

// one is the name of the only cluster, user and context.
const one = "detour"

// pluginEnvironment is what a credential plugin may need of the caller's environment.
var pluginEnvironment = []string{"HOME", "PATH", "USER", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "AWS_PROFILE", "CLOUDSDK_CONFIG", "AZURE_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "KUBECONFIG"}

// Pack encodes a configuration that is loaded. Files that it names (certificates, a token that is renewed) stay files.
func Pack(config *rest.Config) ([]byte, error) { return pack(config) }

// PackForRoot is Pack for a daemon of root's that another user asks, which reads no files for that user: certificates are read here, and a
// token that is renewed is read by a plugin, which runs as the user.
func PackForRoot(config *rest.Config) ([]byte, error) {
	config = rest.CopyConfig(config)
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("read the certificates of the kubeconfig: %w", err)
	}
	config.CAFile, config.CertFile, config.KeyFile = "", "", ""
	if config.BearerTokenFile != "" {
		own, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the detour binary: %w", err)
		}
		path, err := filepath.Abs(config.BearerTokenFile)
		if err != nil {
			return nil, fmt.Errorf("find the token of the kubeconfig: %w", err)
		}
		config.ExecProvider = credential.OfTokenFile(own, path) // the token counts more than a plugin
		config.BearerToken, config.BearerTokenFile = "", ""
	}
	return pack(config)
}

func pack(config *rest.Config) ([]byte, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("read the address of the API server: %w", err)
	}
	cluster := &api.Cluster{
		Server: config.Host, TLSServerName: config.ServerName, InsecureSkipTLSVerify: config.Insecure,
		CertificateAuthority: config.CAFile, CertificateAuthorityData: config.CAData, DisableCompression: config.DisableCompression,
	}
	if cluster.ProxyURL, err = proxy(config, base); err != nil {
		return nil, err
	}
	user := &api.AuthInfo{
		ClientCertificate: config.CertFile, ClientCertificateData: config.CertData, ClientKey: config.KeyFile, ClientKeyData: config.KeyData,
		Token: config.BearerToken, TokenFile: config.BearerTokenFile, Username: config.Username, Password: config.Password,
		Impersonate: config.Impersonate.UserName, ImpersonateUID: config.Impersonate.UID, ImpersonateGroups: config.Impersonate.Groups, ImpersonateUserExtra: config.Impersonate.Extra,
	}
	if config.ExecProvider != nil {
		user.Exec = withEnvironment(config.ExecProvider)
	}
	return clientcmd.Write(api.Config{
		Clusters:       map[string]*api.Cluster{one: cluster},
		AuthInfos:      map[string]*api.AuthInfo{one: user},
		Contexts:       map[string]*api.Context{one: {Cluster: one, AuthInfo: one}},
		CurrentContext: one,
	})
}

// Unpack is the configuration that Pack encoded.
func Unpack(raw []byte) (*rest.Config, error) {
	if len(raw) == 0 {
		return nil, errors.New("no kubeconfig was given")
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(raw)
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	return config, nil
}

// Confine keeps what Pack encoded within the rights of who, whom the daemon of root serves: plugins run as who, and files are not read.
func Confine(raw []byte, who credential.Account) ([]byte, error) {
	config, err := clientcmd.Load(raw)
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	var paths []string
	for _, c := range config.Clusters {
		paths = append(paths, c.CertificateAuthority)
	}
	for _, u := range config.AuthInfos {
		paths = append(paths, u.ClientCertificate, u.ClientKey, u.TokenFile)
		if u.AuthProvider != nil {
			return nil, fmt.Errorf("the daemon is root's and uses no auth provider (%q) for user %d: use a credential plugin", u.AuthProvider.Name, who.UID)
		}
		if u.Exec == nil {
			continue
		}
		if u.Exec, err = credential.As(who, u.Exec); err != nil {
			return nil, err
		}
	}
	for _, p := range paths {
		if p != "" {
			return nil, fmt.Errorf("the daemon is root's and does not read %s for user %d: connect with the detour of the daemon's version, which reads it as you", p, who.UID)
		}
	}
	return clientcmd.Write(*config)
}

// proxy is the HTTP proxy to the API server, of the kubeconfig or of the environment.
func proxy(config *rest.Config, base *url.URL) (string, error) {
	find := config.Proxy
	if find == nil {
		find = http.ProxyFromEnvironment
	}
	via, err := find(&http.Request{URL: base})
	if err != nil {
		return "", fmt.Errorf("the HTTP proxy: %w", err)
	}
	if via == nil {
		return "", nil
	}
	return via.String(), nil
}

// withEnvironment gives a credential plugin the variables of the caller that it does not set itself.
func withEnvironment(plugin *api.ExecConfig) *api.ExecConfig {
	plugin = plugin.DeepCopy()
	set := map[string]bool{}
	for _, v := range plugin.Env {
		set[v.Name] = true
	}
	for _, name := range pluginEnvironment {
		if value, ok := os.LookupEnv(name); ok && !set[name] {
			plugin.Env = append(plugin.Env, api.ExecEnvVar{Name: name, Value: value})
		}
	}
	// The daemon has no terminal to ask on.
	plugin.InteractiveMode = api.NeverExecInteractiveMode
	return plugin
}
