package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	commandLine = regexp.MustCompile(`(?m)^    (?:bin/)?detour ([a-z]+)(.*)$`)
	flag        = regexp.MustCompile(`--([a-z0-9-]+)`)
	sourcePath  = regexp.MustCompile("`((?:pkg|cmd|rpc|integration|manifests|examples|hack|docs)/" +
		"[A-Za-z0-9_./-]*[A-Za-z0-9_])`")
	quoted = regexp.MustCompile(`"([^"]+)"`)
)

// A command line in a document has only flags that the reference of the commands knows.
func TestFlagsOfTheExamplesExist(t *testing.T) {
	reference := read(t, "../../../docs/reference/commands.md")
	pages, err := filepath.Glob("../../../docs/guides/*.md")
	require.NoError(t, err)
	found := 0
	for _, page := range append(pages, "../../../README.md") {
		for _, m := range commandLine.FindAllStringSubmatch(read(t, page), -1) {
			line, _, _ := strings.Cut(m[2], " -- ") // a command's own flags come after it
			line, _, _ = strings.Cut(line, "#")
			assert.Contains(t, reference, "## detour "+m[1]+"\n", "%s: detour %s", page, m[1])
			for _, f := range flag.FindAllStringSubmatch(line, -1) {
				found++
				assert.Regexp(t, `\| .*--`+f[1]+`[ `+"`"+`]`, reference, "%s: detour %s%s", page, m[1], line)
			}
		}
	}
	require.Positive(t, found)
}

// A message that the troubleshooting guide quotes is one that the code writes.
func TestQuotedMessagesAreInTheCode(t *testing.T) {
	var code strings.Builder
	require.NoError(t, filepath.WalkDir("../../../pkg", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		raw, err := os.ReadFile(path)
		code.Write(raw)
		return err
	}))
	for line := range strings.Lines(read(t, "../../../docs/guides/troubleshooting.md")) {
		symptom, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		for _, m := range quoted.FindAllStringSubmatch(symptom, -1) {
			for part := range strings.SplitSeq(m[1], "...") {
				assert.Contains(t, code.String(), strings.TrimSpace(part), "in %s", strings.TrimSpace(line))
			}
		}
	}
}

// A path in a document leads to a file or a directory.
func TestPathsInTheDocumentsExist(t *testing.T) {
	var pages []string
	for _, pattern := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob("../../../" + pattern)
		require.NoError(t, err)
		pages = append(pages, found...)
	}
	for _, page := range pages {
		for _, m := range sourcePath.FindAllStringSubmatch(read(t, page), -1) {
			_, err := os.Stat("../../../" + m[1])
			assert.NoError(t, err, "%s names %s", page, m[1])
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(raw)
}
