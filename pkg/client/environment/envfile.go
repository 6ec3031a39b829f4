package environment

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// identifier matches what a POSIX shell accepts as the name of a variable. Kubernetes accepts
// nearly any name.
var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// executedVariables are variables whose values a shell executes, or lets every program execute that
// it starts.
var executedVariables = []string{"BASH_ENV", "LD_AUDIT", "LD_PRELOAD", "PROMPT_COMMAND", "PS0", "PS1", "PS2", "PS4"}

// EnvFile returns the variables as an env file. A POSIX shell can read it, and so can docker if no
// value needs quotes. It omits variables of which a shell would execute the value, or the name
// because that is not an identifier.
func EnvFile(variables map[string]string) (content []byte, omitted []string) {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if !identifier.MatchString(name) || slices.Contains(executedVariables, name) {
			omitted = append(omitted, name)
			continue
		}
		fmt.Fprintf(&b, "%s=%s\n", name, quote(variables[name]))
	}
	return []byte(b.String()), omitted
}

// quote makes s one word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("-_./:=@%+,", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// JSON returns the variables as one object.
func JSON(variables map[string]string) ([]byte, error) {
	raw, err := json.MarshalIndent(variables, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the environment: %w", err)
	}
	return append(raw, '\n'), nil
}

// WriteFile replaces a file by one that only its owner can read, whoever could read the old one. It
// refuses to replace anything but a regular file, such as a device.
func WriteFile(path string, content []byte) error {
	if old, err := os.Stat(path); err == nil && !old.Mode().IsRegular() {
		return fmt.Errorf("write %s: it is not a regular file: choose another path", path)
	}
	if err := replaceFile(path, content); err != nil {
		return fmt.Errorf("write %s: %w", path, withoutPath(err))
	}
	return nil
}

// replaceFile writes a new file and moves it over the old one, which keeps its content if that
// fails.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".detour-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it does not exist any more if everything went well
	_, err = f.Write(content)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// withoutPath removes the name of the temporary file from err: it means nothing to the user.
func withoutPath(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
