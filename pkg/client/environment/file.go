package environment

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// identifier is a name that a POSIX shell takes for a variable's. Kubernetes takes nearly any.
var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// run are variables whose values a shell runs, or has every program run that it starts.
var run = []string{"BASH_ENV", "LD_AUDIT", "LD_PRELOAD", "PROMPT_COMMAND", "PS0", "PS1", "PS2", "PS4"}

// EnvFile are the variables in the form of an env file: for a POSIX shell to read, and for docker where no value needs quotes. Left out are
// those of which a shell would run the value, or the name, because that is no variable's to it.
func EnvFile(variables map[string]string) (lines []byte, out []string) {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if !identifier.MatchString(name) || slices.Contains(run, name) {
			out = append(out, name)
			continue
		}
		fmt.Fprintf(&b, "%s=%s\n", name, quote(variables[name]))
	}
	return []byte(b.String()), out
}

func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=@%+,", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// JSON are the variables as one object.
func JSON(variables map[string]string) ([]byte, error) {
	raw, err := json.MarshalIndent(variables, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the environment: %w", err)
	}
	return append(raw, '\n'), nil
}

// WriteFile puts a file in place that only its owner may read, whoever might read what was there before. What is there and no file, such as a device,
// stays.
func WriteFile(path string, content []byte) error {
	if there, err := os.Stat(path); err == nil && !there.Mode().IsRegular() {
		return fmt.Errorf("write %s: it is not a file: choose another path", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".detour-*") // of mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
