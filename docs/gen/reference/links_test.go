package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	notSlug = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// A link to a file or a heading that does not exist is of no use to a reader.
func TestLinksOfTheDocumentsLeadSomewhere(t *testing.T) {
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", ".github/*.md"} {
		found, err := filepath.Glob(filepath.Join("..", "..", "..", pattern))
		require.NoError(t, err)
		pages = append(pages, found...)
	}
	require.NotEmpty(t, pages)
	for _, page := range pages {
		raw, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(string(raw), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := filepath.Join(filepath.Dir(page), path)
			if path == "" {
				target = page
			}
			text, err := os.ReadFile(target)
			if info, serr := os.Stat(target); serr == nil && info.IsDir() {
				continue
			}
			if assert.NoError(t, err, "%s links to %s", page, m[1]) && anchor != "" {
				assert.Contains(t, slugs(string(text)), anchor, "%s links to %s", page, m[1])
			}
		}
	}
}

// Lines of documents wrap at 100 columns; tables cannot, and examples of commands and output do
// not.
func TestLinesOfTheDocumentsWrap(t *testing.T) {
	pages, err := filepath.Glob("../../../docs/*/*.md")
	require.NoError(t, err)
	for _, page := range append(pages,
		"../../../README.md", "../../../CONTRIBUTING.md", "../../../docs/glossary.md", "../../../docs/performance.md") {
		raw, err := os.ReadFile(page)
		require.NoError(t, err)
		if strings.HasPrefix(string(raw), "<!-- Generated") {
			continue
		}
		for n, line := range strings.Split(string(raw), "\n") {
			if !strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "    ") {
				assert.LessOrEqual(t, len([]rune(line)), 100, "%s:%d", page, n+1)
			}
		}
	}
}

// slugs returns the anchors of a page's headings, as they appear in links.
func slugs(page string) []string {
	var all []string
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		all = append(all, strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}
