// Package kubeconfig resolves the files, flags and environment of a command to one self-contained
// kubeconfig, so that the daemon, which is another process and perhaps another user, has exactly
// the caller's access. Start with Load on the caller's side and with Unpack on the daemon's.
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

// one is the name of the packed cluster, user and context.
const one = "detour"

// pluginEnvironment lists the variables of the caller that a credential plugin may need.
var pluginEnvironment = []string{
	"HOME", "PATH", "USER", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy",
	"AWS_PROFILE", "CLOUDSDK_CONFIG", "AZURE_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "KUBECONFIG",
}

// Pack encodes a loaded configuration. Files that it names, such as certificates and a rotated
// token, stay files.
func Pack(config *rest.Config) ([]byte, error) { return pack(config) }

// PackForRoot is Pack for a daemon of root that serves another user and reads no files for that
// user: PackForRoot reads the certificates, and a plugin that runs as the user reads a rotated
// token.
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
		config.ExecProvider = credential.OfTokenFile(own, path) // a token takes precedence over a plugin
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
		CertificateAuthority: config.CAFile, CertificateAuthorityData: config.CAData,
		DisableCompression: config.DisableCompression,
	}
	if cluster.ProxyURL, err = proxy(config, base); err != nil {
		return nil, err
	}
	user := &api.AuthInfo{
		ClientCertificate: config.CertFile, ClientCertificateData: config.CertData,
		ClientKey: config.KeyFile, ClientKeyData: config.KeyData,
		Token: config.BearerToken, TokenFile: config.BearerTokenFile,
		Username: config.Username, Password: config.Password,
		Impersonate: config.Impersonate.UserName, ImpersonateUID: config.Impersonate.UID,
		ImpersonateGroups: config.Impersonate.Groups, ImpersonateUserExtra: config.Impersonate.Extra,
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

// Unpack decodes a configuration that Pack has encoded.
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

// Confine limits a configuration that Pack has encoded to the rights of an account that the daemon
// of root serves: plugins run as that account. Confine refuses a configuration that names files.
func Confine(raw []byte, account credential.Account) ([]byte, error) {
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
			return nil,
				fmt.Errorf("the daemon runs as root and uses no auth provider (%q) for user %d: "+
					"use a credential plugin",
					u.AuthProvider.Name, account.UID)
		}
		if u.Exec == nil {
			continue
		}
		if u.Exec, err = credential.As(account, u.Exec); err != nil {
			return nil, err
		}
	}
	for _, p := range paths {
		if p != "" {
			return nil, fmt.Errorf("the daemon runs as root and does not read %s for user %d: "+
				"connect with a detour of the daemon's version, which reads it as you",
				p, account.UID)
		}
	}
	return clientcmd.Write(*config)
}

// proxy returns the URL of the HTTP proxy to the API server that the kubeconfig or the environment
// sets.
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

// withEnvironment gives a credential plugin the variables of the caller that it does not set
// itself.
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
	// The daemon has no terminal for a prompt.
	plugin.InteractiveMode = api.NeverExecInteractiveMode
	return plugin
}
