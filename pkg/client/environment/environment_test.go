package environment

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestReferencesAreExpandedAsByTheKubelet(t *testing.T) {
	known := map[string]string{"A": "1", "B": "$(A)"}
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "1", "x$(A)y$(A)": "x1y1", "$(B)": "$(A)", "$(C)": "$(C)",
		"$$(A)": "$(A)", "$$$(A)": "$1", "$A": "$A", "$(A": "$(A", "$": "$", "a$": "a$", "$$": "$", "$()": "$()",
	} {
		assert.Equal(t, want, expand(in, known), in)
	}
}

// fakeSources holds objects by "kind name". An object that is nil cannot be read.
type fakeSources map[string]map[string]string

func (f fakeSources) get(key string) (map[string]string, error) {
	all, ok := f[key]
	switch {
	case !ok:
		return nil, errAbsent
	case all == nil:
		return nil, errors.New("you may not read it")
	}
	return all, nil
}

func (f fakeSources) ConfigMap(_ context.Context, name string) (map[string]string, error) {
	return f.get("configmap " + name)
}

func (f fakeSources) Secret(_ context.Context, name string) (map[string]string, error) {
	return f.get("secret " + name)
}

func TestTheEnvironmentIsThatOfTheContainer(t *testing.T) {
	yes := true
	object := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	from := func(s corev1.EnvVarSource) *corev1.EnvVarSource { return &s }
	secret := func(name, key string, optional *bool) *corev1.EnvVarSource {
		return from(corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: object(name), Key: key, Optional: optional,
		}})
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app-1", Namespace: "shop", Labels: map[string]string{"tier": "web"}},
		Spec:       corev1.PodSpec{NodeName: "node1"},
	}
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.1.1.1"}, {IP: "fd00::1"}}
	field := func(path string) *corev1.EnvVarSource {
		return from(corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}})
	}
	container := &corev1.Container{
		EnvFrom: []corev1.EnvFromSource{
			{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: object("all")}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: object("hidden")}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: object("maybe"), Optional: &yes}},
		},
		Env: []corev1.EnvVar{
			{Name: "A", Value: "1"},
			{Name: "B", Value: "$(A)$(P_X)"},
			{Name: "P_Y", Value: "over"},
			{Name: "S", ValueFrom: secret("keys", "s", nil)},
			{Name: "H", ValueFrom: secret("hidden", "h", nil)},
			{Name: "K", ValueFrom: secret("keys", "none", nil)},
			{Name: "O", ValueFrom: secret("keys", "none", &yes)},
			{Name: "NODE", ValueFrom: field("spec.nodeName")},
			{Name: "IPS", ValueFrom: field("status.podIPs")},
			{Name: "TIER", ValueFrom: field("metadata.labels['tier']")},
			{Name: "ODD", ValueFrom: field("spec.odd")},
		},
	}
	got, missing := resolve(t.Context(), pod, container, fakeSources{
		"configmap all": {"X": "x", "Y": "y"},
		"secret keys":   {"s": "secret"}, "secret hidden": nil,
	})
	assert.Equal(t, map[string]string{
		"P_X": "x", "P_Y": "over", "A": "1", "B": "1x", "S": "secret",
		"NODE": "node1", "IPS": "10.1.1.1,fd00::1", "TIER": "web",
	}, got)
	assert.Equal(t, []string{
		"a field of the pod (unsupported fieldPath: spec.odd)",
		"secret hidden (you may not read it)",
		"secret keys (key none does not exist)",
	}, missing)
}

func TestMergeKeepsTheLaptopsOwnVariables(t *testing.T) {
	got := Merge([]string{"PATH=/bin", "HOME=/root", "A=old", "AB=kept"}, map[string]string{
		"PATH": "/app",
		"HOME": "/",
		"A":    "new",
		"B":    "",
		// A shell would execute these.
		"BASH_FUNC_ls%%": "() { id; }",
		"PROMPT_COMMAND": "id",
		"LD_PRELOAD":     "/app/lib.so",
	})
	assert.Equal(t, []string{"PATH=/bin", "HOME=/root", "AB=kept", "A=new", "B="}, got)
}

// Someone who may change the app's environment must not execute anything on the laptop. Kubernetes
// accepts nearly any name since 1.34.
func TestEnvFileExecutesNothing(t *testing.T) {
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	values := map[string]string{"PLAIN": "1", "_A1": "2"}
	bad := []string{
		"", "1A", "A B", "A-B", "A.B", "A;touch " + ran + ";B", "$(touch " + ran + ")",
		"A\n touch " + ran + "\nB", "É", "A[$(touch " + ran + ")]", "PROMPT_COMMAND", "PS1",
	}
	for _, name := range bad {
		values[name] = "touch " + ran
	}
	lines, omitted := EnvFile(values)
	assert.ElementsMatch(t, bad, omitted)
	assert.Equal(t, "PLAIN=1\n_A1=2\n", string(lines))
	file := filepath.Join(dir, "env")
	require.NoError(t, WriteFile(file, lines))
	printed, err := exec.Command("sh", "-c", ". "+file+`; echo "$PLAIN$_A1"`).Output()
	require.NoError(t, err)
	assert.Equal(t, "12\n", string(printed))
	assert.NoFileExists(t, ran)
	raw, err := JSON(values)
	require.NoError(t, err)
	var all map[string]string
	require.NoError(t, json.Unmarshal(raw, &all))
	assert.Equal(t, values, all)
}

// A shell reads the same values back, and nobody else can read the file.
func TestEnvFileIsReadByAShell(t *testing.T) {
	values := map[string]string{
		"PLAIN": "a-b_c./:@1", "SPACES": "a  b", "QUOTES": `it's "so"`,
		"DOLLAR": "$HOME `id` $(id)", "LINES": "a\nb", "EMPTY": "", "HASH": "#x", "BACKSLASH": `\n\`,
	}
	file := filepath.Join(t.TempDir(), "env")
	require.NoError(t, os.WriteFile(file, []byte("old"), 0o644))
	lines, omitted := EnvFile(values)
	assert.Empty(t, omitted)
	require.NoError(t, WriteFile(file, lines))
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	for name, want := range values {
		out, err := exec.Command("sh", "-c", ". "+file+`; printf '%s|' "$`+name+`"`).Output()
		require.NoError(t, err)
		assert.Equal(t, want, strings.TrimSuffix(string(out), "|"), name)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".detour-*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	require.ErrorContains(t, WriteFile(filepath.Join(t.TempDir(), "no", "env"), nil), "write ")
}
