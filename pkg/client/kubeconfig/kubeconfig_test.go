package kubeconfig

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/detour-dev/detour/pkg/client/credential"
)

func TestPackKeepsTheCallersAccess(t *testing.T) {
	files := filepath.Join(t.TempDir(), "pem")
	require.NoError(t, os.WriteFile(files, []byte("pem"), 0o600))
	for name, config := range map[string]*rest.Config{
		"certificates": {Host: "https://10.0.0.1:6443", TLSClientConfig: rest.TLSClientConfig{
			CAData: []byte("ca"), CertData: []byte("cert"), KeyData: []byte("key"), ServerName: "kubernetes",
		}},
		"files": {Host: "https://k8s.example/prefix", TLSClientConfig: rest.TLSClientConfig{
			CAFile: files, CertFile: files, KeyFile: files,
		}},
		"a token": {
			Host: "https://10.0.0.1:6443", BearerToken: "secret", TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		},
		"impersonation": {
			Host:        "https://10.0.0.1:6443",
			Impersonate: rest.ImpersonationConfig{UserName: "jane", Groups: []string{"devs"}},
		},
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
		Command: "aws", APIVersion: "client.authentication.k8s.io/v1",
		InteractiveMode: api.IfAvailableExecInteractiveMode,
		Env:             []api.ExecEnvVar{{Name: "AWS_PROFILE", Value: "prod"}},
	}})
	require.NoError(t, err)
	got, err := Unpack(raw)
	require.NoError(t, err)
	require.Contains(t, got.ExecProvider.Env, api.ExecEnvVar{Name: "HOME", Value: "/home/jane"})
	require.Contains(t, got.ExecProvider.Env, api.ExecEnvVar{Name: "AWS_PROFILE", Value: "prod"})
	require.NotContains(t, got.ExecProvider.Env, api.ExecEnvVar{Name: "AWS_PROFILE", Value: "staging"})
}

func TestProxyOfTheKubeconfigIsKept(t *testing.T) {
	raw := []byte(`apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: 'https://10.0.0.1', proxy-url: 'http://proxy.example:3128'}}]
users: [{name: a, user: {token: t}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
`)
	config, err := Unpack(raw)
	require.NoError(t, err)
	packed, err := Pack(config)
	require.NoError(t, err)
	require.Contains(t, string(packed), "proxy-url: http://proxy.example:3128")
}

// A kubeconfig for the daemon of root must be self-contained to pass Confine. A plugin reads a
// rotated token.
func TestPackForRoot(t *testing.T) {
	files := filepath.Join(t.TempDir(), "pem")
	require.NoError(t, os.WriteFile(files, []byte("pem"), 0o600))
	account := credential.Account{UID: 12345, GID: 12345}
	for name, config := range map[string]*rest.Config{
		"certificates": {Host: "https://k8s.example", TLSClientConfig: rest.TLSClientConfig{
			CAFile: files, CertFile: files, KeyFile: files,
		}},
		"a token": {
			Host: "https://k8s.example", BearerToken: "pem", BearerTokenFile: files,
			TLSClientConfig: rest.TLSClientConfig{CAFile: files},
		},
		"a plugin": {Host: "https://k8s.example", ExecProvider: &api.ExecConfig{
			Command: "aws", Args: []string{"eks"}, APIVersion: "client.authentication.k8s.io/v1",
			InteractiveMode: api.NeverExecInteractiveMode,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if config.CAFile != "" {
				raw, err := Pack(config)
				require.NoError(t, err)
				_, err = Confine(raw, account)
				require.ErrorContains(t, err, "the daemon runs as root and does not read "+files)
			}
			raw, err := PackForRoot(config)
			require.NoError(t, err)
			confined, err := Confine(raw, account)
			require.NoError(t, err)
			got, err := Unpack(confined)
			require.NoError(t, err)
			require.Empty(t, got.CAFile+got.CertFile+got.KeyFile+got.BearerTokenFile+got.BearerToken)
			if config.CAFile != "" {
				require.Equal(t, "pem", string(got.CAData))
			}
			if config.CertFile != "" {
				require.Equal(t, "pem pem", string(got.CertData)+" "+string(got.KeyData))
				return
			}
			require.Equal(t, credential.Self, got.ExecProvider.Command)
			require.Equal(t, []string{credential.Command}, got.ExecProvider.Args)
			require.Len(t, got.ExecProvider.Env, 1)
			require.NotContains(t, "LD_PRELOAD PATH", got.ExecProvider.Env[0].Name)
		})
	}
}

func TestPrintToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte("secret\n"), 0o600))
	var out bytes.Buffer
	require.NoError(t, credential.PrintToken(&out, path))
	require.Contains(t, out.String(), `"kind":"ExecCredential"`)
	require.Contains(t, out.String(), `"token":"secret"`)
	require.Contains(t, out.String(), `"expirationTimestamp"`)
	require.ErrorContains(t, credential.PrintToken(&out, path+"-not-there"), "read the token of the kubeconfig")
}
