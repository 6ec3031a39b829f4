package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// schema is the part of JSON schema that the chart and the custom resources use.
type schema struct {
	Type        any                `json:"type"` // a string, or a list of them
	Format      string             `json:"format"`
	Description string             `json:"description"`
	Enum        []any              `json:"enum"`
	Default     any                `json:"default"`
	Properties  map[string]*schema `json:"properties"`
	Items       *schema            `json:"items"`
	Required    []string           `json:"required"`
	Validations []struct {
		Message string `json:"message"`
	} `json:"x-kubernetes-validations"`
	IntOrString bool `json:"x-kubernetes-int-or-string"`
}

// kind returns the type in a word or two.
func (s *schema) kind() string {
	switch t := s.Type.(type) {
	case string:
		if t == "array" && s.Items != nil {
			return "list of " + s.Items.kind()
		}
		return t
	case []any:
		var all []string
		for _, one := range t {
			all = append(all, fmt.Sprint(one))
		}
		return strings.Join(all, " or ")
	}
	if s.IntOrString {
		return "integer or string"
	}
	if len(s.Enum) > 0 {
		return "string"
	}
	return "any"
}

// values returns the allowed values as a sentence, or nothing.
func (s *schema) values() string {
	var all []string
	for _, v := range s.Enum {
		all = append(all, fmt.Sprintf("`%v`", v))
	}
	if len(all) == 0 {
		return ""
	}
	return "One of " + strings.Join(all, ", ") + "."
}

// chartValues returns the page of the chart's values: a row for each property of the schema, its
// default, and the comment that stands above it in values.yaml.
func chartValues() (string, error) {
	chart := filepath.Join(root, "manifests", "chart")
	raw, err := os.ReadFile(filepath.Join(chart, "values.schema.json"))
	if err != nil {
		return "", err
	}
	var all schema
	if err := json.Unmarshal(raw, &all); err != nil {
		return "", err
	}
	if raw, err = os.ReadFile(filepath.Join(chart, "values.yaml")); err != nil {
		return "", err
	}
	var defaults map[string]any
	if err := yaml.Unmarshal(raw, &defaults); err != nil {
		return "", err
	}
	var page strings.Builder
	page.WriteString(header("manifests/chart", "Chart values"))
	page.WriteString("\nSet a value with `detour install --set KEY=VALUE`. Other keys than these are refused.\n")
	page.WriteString("\n| key | type | default | meaning |\n|---|---|---|---|\n")
	writeValues(&page, "", &all, defaults, comments(string(raw)))
	return page.String(), nil
}

func writeValues(
	page *strings.Builder, prefix string, s *schema, defaults map[string]any, comments map[string]string,
) {
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		property, path := s.Properties[name], prefix+name
		inner, nested := defaults[name].(map[string]any)
		if nested && len(property.Properties) > 0 && hasOwnComments(path, comments) {
			if comments[path] != "" {
				fmt.Fprintf(page, "| `%s` | %s | | %s |\n", path, property.kind(), cell(comments[path]))
			}
			writeValues(page, path+".", property, inner, comments)
			continue
		}
		meaning := cell(strings.Join([]string{property.Description, comments[path], property.values()}, " "))
		fmt.Fprintf(page, "| `%s` | %s | %s | %s |\n", path, property.kind(), literal(defaults[name]), meaning)
	}
}

// hasOwnComments reports whether values.yaml explains the parts of path, which then get rows of
// their own.
func hasOwnComments(path string, comments map[string]string) bool {
	for key := range comments {
		if strings.HasPrefix(key, path+".") {
			return true
		}
	}
	return false
}

// literal returns a default as it would be written in YAML.
func literal(v any) string {
	if v == nil {
		return ""
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return "`" + cell(strings.Trim(string(raw), `"`)) + "`"
}

// comments returns the comment above each key of values.yaml, by the key's path.
func comments(values string) map[string]string {
	found := map[string]string{}
	var path, block []string
	for line := range strings.Lines(values) {
		text := strings.TrimSpace(line)
		if comment, ok := strings.CutPrefix(text, "#"); ok {
			block = append(block, strings.TrimSpace(comment))
			continue
		}
		key, _, isKey := strings.Cut(text, ":")
		if !isKey || strings.HasPrefix(text, "-") {
			block = nil
			continue
		}
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		path = append(path[:min(depth, len(path))], key)
		if len(block) > 0 {
			found[strings.Join(path, ".")] = strings.Join(block, " ")
		}
		block = nil
	}
	return found
}
