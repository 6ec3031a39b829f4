package kubeconfig

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd/api"
)

func TestPackKeepsTheCallersAccess(t *testing.T) {
	files := filepath.Join(t.TempDir(), "pem")
	require.NoError(t, os.WriteFile(files, []byte("pem"), 0o600))
	for name, config := range map[string]*rest.Config{
		"certificates": {Host: "https://10.0.0.1:6443", TLSClientConfig: rest.TLSClientConfig{CAData: []byte("ca"), CertData: []byte("cert"), KeyData: []byte("key"), ServerName: "kubernetes"}},
		"files":        {Host: "https://k8s.example/prefix", TLSClientConfig: rest.TLSClientConfig{CAFile: files, CertFile: files, KeyFile: files}},
		"token":        {Host: "https://10.0.0.1:6443", BearerToken: "secret", TLSClientConfig: rest.TLSClientConfig{Insecure: true}},
		"as another":   {Host: "https://10.0.0.1:6443", Impersonate: rest.ImpersonationConfig{UserName: "jane", Groups: []string{"devs"}}},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := Pack(config)
			require.NoError(t, err)
			got, err := Unpack(raw)
			require.NoError(t, err)
			require.Equal(t, config.Host, got.Host)
			require.Equal(t, config.BearerToken, got.BearerToken)
			require.Equal(t, config.TLSClientConfig.String(), got.TLSClientConfig.String())
			require.Equal(t, config.Impersonate.UserName, got.Impersonate.UserName)
			require.Equal(t, config.Impersonate.Groups, got.Impersonate.Groups)
			require.Nil(t, got.Proxy)
		})
	}
}

// A plugin runs in the daemon with the caller's home and path, and keeps what the kubeconfig sets.
func TestCredentialPluginGetsTheCallersEnvironment(t *testing.T) {
	t.Setenv("HOME", "/home/jane")
	t.Setenv("AWS_PROFILE", "staging")
	raw, err := Pack(&rest.Config{Host: "https://10.0.0.1", ExecProvider: &api.ExecConfig{
		Command: "aws", APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: api.IfAvailableExecInteractiveMode, Env: []api.ExecEnvVar{{Name: "AWS_PROFILE", Value: "prod"}},
	}})
	require.NoError(t, err)
	got, err := Unpack(raw)
	require.NoError(t, err)
	require.Contains(t, got.ExecProvider.Env, api.ExecEnvVar{Name: "HOME", Value: "/home/jane"})
	require.Contains(t, got.ExecProvider.Env, api.ExecEnvVar{Name: "AWS_PROFILE", Value: "prod"})
	require.NotContains(t, got.ExecProvider.Env, api.ExecEnvVar{Name: "AWS_PROFILE", Value: "staging"})
}

func TestProxyOfTheKubeconfigIsKept(t *testing.T) {
	raw := []byte("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'https://10.0.0.1', proxy-url: 'http://proxy.example:3128'}}]\nusers: [{name: a, user: {token: t}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\n")
	config, err := Unpack(raw)
	require.NoError(t, err)
	packed, err := Pack(config)
	require.NoError(t, err)
	require.Contains(t, string(packed), "proxy-url: http://proxy.example:3128")
}
