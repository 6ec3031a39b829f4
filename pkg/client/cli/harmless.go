package cli

import (
	"io"
	"strings"
	"unicode"
)

// harmless keeps what a stranger wrote from steering the terminal, and from looking like another line.
func harmless(s string) string {
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

// harmlessly writes lines, each with one call, of which other people may have written parts.
type harmlessly struct{ w io.Writer }

func (h harmlessly) Write(p []byte) (int, error) {
	text, ended := strings.CutSuffix(string(p), "\n")
	if text = harmless(text); ended {
		text += "\n"
	}
	if _, err := io.WriteString(h.w, text); err != nil {
		return 0, err
	}
	return len(p), nil
}
