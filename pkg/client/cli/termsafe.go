package cli

import (
	"io"
	"strings"
	"unicode"
)

// termSafe removes from s what could control the terminal or look like a line of its own. Other
// people choose the names of objects, users and laptops.
func termSafe(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\n' || c == '\t':
			return ' '
		case !unicode.IsGraphic(c):
			return unicode.ReplacementChar
		}
		return c
	}, s)
}

// termSafeWriter writes lines, each with one call of Write, that may contain text of other people.
type termSafeWriter struct{ w io.Writer }

// Write implements io.Writer.
func (t termSafeWriter) Write(p []byte) (int, error) {
	text, ended := strings.CutSuffix(string(p), "\n")
	if text = termSafe(text); ended {
		text += "\n"
	}
	if _, err := io.WriteString(t.w, text); err != nil {
		return 0, err
	}
	return len(p), nil
}
