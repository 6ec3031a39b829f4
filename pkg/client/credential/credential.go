// Package credential confines what a user's kubeconfig makes the daemon of root run or read to that
// user's rights: the daemon starts a credential plugin through `detour credential`, which becomes
// the user before it looks at the plugin. Start with As and Run; HTTPClient is for the requests
// themselves.
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

const (
	// Command is the hidden command of detour that calls Run.
	Command = "credential"
	// Self is this very program, whatever has become of its file.
	Self = "/proc/self/exe"
	// TokenFlag makes the command call PrintToken for a file.
	TokenFlag = "token-file"
)

// variable holds a plugin in the environment of the command. Arguments would show the plugin's
// environment to every user of the machine, and variables of its own would affect a process of
// root.
const variable = "DETOUR_CREDENTIAL_PLUGIN"

// tokenLife is how long a token is used before its file is read again. client-go uses the same
// time.
const tokenLife = time.Minute

// execInfo is the variable in which client-go describes the cluster to a plugin.
const execInfo = "KUBERNETES_EXEC_INFO"

// Account is a user of this machine, as the kernel knows the user's processes.
type Account struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups"`
}

// plugin is a program, and the account that runs it.
type plugin struct {
	Account     Account  `json:"account"`
	Command     string   `json:"command"`
	Args        []string `json:"args"`
	Environment []string `json:"environment"`
}

// As returns a credential plugin that runs exec as another account. It does not change exec.
func As(account Account, exec *api.ExecConfig) (*api.ExecConfig, error) {
	p := plugin{Account: account, Command: exec.Command, Args: exec.Args}
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

// Run becomes the account and then the plugin that the environment describes. It returns only an
// error.
func Run() error {
	raw, ok := os.LookupEnv(variable)
	if !ok {
		return errors.New("only the daemon uses this command, to start credential plugins")
	}
	var p plugin
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		return fmt.Errorf("decode the credential plugin: %w", err)
	}
	return p.run(os.Getenv(execInfo))
}

// OfTokenFile returns a plugin that reads a token from a file, again and again. detour is the path
// of the program.
func OfTokenFile(detour, path string) *api.ExecConfig {
	return &api.ExecConfig{
		Command: detour, Args: []string{Command, "--" + TokenFlag, path},
		APIVersion: clientauthentication.SchemeGroupVersion.String(), InteractiveMode: api.NeverExecInteractiveMode,
	}
}

// PrintToken does the work of the plugin that OfTokenFile returns.
func PrintToken(w io.Writer, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the token of the kubeconfig: %w", err)
	}
	expires := metav1.NewTime(time.Now().Add(tokenLife))
	return json.NewEncoder(w).Encode(clientauthentication.ExecCredential{
		TypeMeta: metav1.TypeMeta{APIVersion: clientauthentication.SchemeGroupVersion.String(), Kind: "ExecCredential"},
		Status: &clientauthentication.ExecCredentialStatus{
			Token: strings.TrimSpace(string(raw)), ExpirationTimestamp: &expires,
		},
	})
}
