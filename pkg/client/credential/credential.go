// Package credential keeps what a user's kubeconfig has the daemon of root run or read within that user's rights: a credential plugin
// is started by way of `detour credential`, which becomes the user before it looks at what it is to start.
package credential

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientauthentication "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Command is the hidden command of detour, and Self this very program, whatever has become of its file.
const (
	Command = "credential"
	Self    = "/proc/self/exe"
	// TokenFlag has the command print the token of a file.
	TokenFlag = "token-file"
)

// variable holds a plugin in the environment of the command. Arguments would show the plugin's environment to everybody on the machine,
// and as variables of their own they would mean something to a process of root.
const variable = "DETOUR_CREDENTIAL_PLUGIN"

// tokenLife is how long a token is used before its file is read again, as client-go does.
const tokenLife = time.Minute

// Account is a user of this machine, as the kernel knows a process of theirs.
type Account struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups"`
}

// plugin is what is to be started, and as whom.
type plugin struct {
	Account     Account  `json:"account"`
	Command     string   `json:"command"`
	Args        []string `json:"args"`
	Environment []string `json:"environment"`
}

// As is a credential plugin that runs as who.
func As(who Account, exec *api.ExecConfig) (*api.ExecConfig, error) {
	p := plugin{Account: who, Command: exec.Command, Args: exec.Args}
	for _, v := range exec.Env {
		p.Environment = append(p.Environment, v.Name+"="+v.Value)
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the credential plugin: %w", err)
	}
	confined := exec.DeepCopy()
	confined.Command, confined.Args = Self, []string{Command}
	confined.Env = []api.ExecEnvVar{{Name: variable, Value: string(raw)}}
	return confined, nil
}

// Run becomes the user and then the plugin that the environment names. It returns only when that fails.
func Run() error {
	raw, ok := os.LookupEnv(variable)
	if !ok {
		return errors.New("this is for the daemon, which starts credential plugins so")
	}
	var p plugin
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		return fmt.Errorf("decode the credential plugin: %w", err)
	}
	return p.run(os.Getenv(execInfo))
}

// execInfo is what client-go tells plugins.
const execInfo = "KUBERNETES_EXEC_INFO"

// OfTokenFile is a plugin that reads a token from a file, time and again.
func OfTokenFile(detour, path string) *api.ExecConfig {
	return &api.ExecConfig{
		Command: detour, Args: []string{Command, "--" + TokenFlag, path}, APIVersion: clientauthentication.SchemeGroupVersion.String(), InteractiveMode: api.NeverExecInteractiveMode,
	}
}

// PrintToken is that plugin.
func PrintToken(w io.Writer, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the token of the kubeconfig: %w", err)
	}
	expires := metav1.NewTime(time.Now().Add(tokenLife))
	return json.NewEncoder(w).Encode(clientauthentication.ExecCredential{
		TypeMeta: metav1.TypeMeta{APIVersion: clientauthentication.SchemeGroupVersion.String(), Kind: "ExecCredential"},
		Status:   &clientauthentication.ExecCredentialStatus{Token: strings.TrimSpace(string(raw)), ExpirationTimestamp: &expires},
	})
}
