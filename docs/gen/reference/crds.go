package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// definition is the part of a CustomResourceDefinition that the page shows.
type definition struct {
	Spec struct {
		Group string `json:"group"`
		Names struct {
			Kind       string   `json:"kind"`
			Plural     string   `json:"plural"`
			ShortNames []string `json:"shortNames"`
		} `json:"names"`
		Versions []struct {
			Name   string `json:"name"`
			Schema struct {
				OpenAPIV3Schema *schema `json:"openAPIV3Schema"`
			} `json:"schema"`
		} `json:"versions"`
	} `json:"spec"`
}

// customResources returns the page of the custom resources: fields from the definitions, phases and
// reasons from the constants of the Go types.
func customResources() (string, error) {
	files, err := filepath.Glob(filepath.Join(root, "manifests", "chart", "definitions", "*.yaml"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	var page strings.Builder
	page.WriteString(header("manifests/chart/definitions and pkg/apis", "Custom resources"))
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		var d definition
		if err := yaml.Unmarshal(raw, &d); err != nil {
			return "", fmt.Errorf("read %s: %w", file, err)
		}
		d.write(&page)
	}
	words, err := constants(filepath.Join(root, "pkg", "apis", "detour", "v1alpha1"))
	if err != nil {
		return "", err
	}
	for _, group := range []struct{ title, prefix, note string }{
		{"Phases of an intercept", "Phase", "`status.phase` is the state of an intercept in one word."},
		{
			"Reasons", "Reason",
			"The condition `Ready` of sessions and intercepts has one of these reasons. Its message explains it.",
		},
	} {
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n| value | meaning |\n|---|---|\n", group.title, group.note)
		for _, w := range words {
			if strings.HasPrefix(w.name, group.prefix) {
				fmt.Fprintf(&page, "| `%s` | %s |\n", w.value, cell(w.comment))
			}
		}
	}
	return page.String(), nil
}

func (d *definition) write(page *strings.Builder) {
	for _, version := range d.Spec.Versions {
		s := version.Schema.OpenAPIV3Schema
		fmt.Fprintf(page, "\n## %s\n\n`%s/%s`, `kubectl get %s` (short: `%s`). %s\n",
			d.Spec.Names.Kind, d.Spec.Group, version.Name,
			d.Spec.Names.Plural, strings.Join(d.Spec.Names.ShortNames, "`, `"), cell(s.Description))
		for _, part := range []string{"spec", "status"} {
			fmt.Fprintf(page, "\n### %s: %s\n\n| field | type | meaning |\n|---|---|---|\n", d.Spec.Names.Kind, part)
			writeFields(page, "", s.Properties[part])
			writeRules(page, s.Properties[part])
		}
	}
}

func writeFields(page *strings.Builder, prefix string, s *schema) {
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		field, path := s.Properties[name], prefix+name
		meaning := []string{field.Description, field.values()}
		if slices.Contains(s.Required, name) {
			meaning = append(meaning, "Required.")
		}
		if field.Default != nil {
			meaning = append(meaning, fmt.Sprintf("Default `%v`.", field.Default))
		}
		fmt.Fprintf(page, "| `%s` | %s | %s |\n", path, field.kind(), cell(strings.Join(meaning, " ")))
		switch {
		case name == "conditions": // Kubernetes' own type
		case len(field.Properties) > 0:
			writeFields(page, path+".", field)
		case field.Items != nil && len(field.Items.Properties) > 0:
			writeFields(page, path+"[].", field.Items)
		}
	}
}

// writeRules lists the rules that the API server checks across fields, each message once.
func writeRules(page *strings.Builder, s *schema) {
	var rules []string
	for _, v := range s.Validations {
		if !slices.Contains(rules, v.Message) {
			rules = append(rules, v.Message)
		}
	}
	if len(rules) == 0 {
		return
	}
	fmt.Fprint(page, "\nRules that the API server checks:\n\n")
	for _, r := range rules {
		fmt.Fprintf(page, "- %s\n", r)
	}
}

// constant is one string constant with the comment behind it.
type constant struct{ name, value, comment string }

// constants returns the string constants of the package in dir, in the order of the files.
func constants(dir string) ([]constant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_types.go"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var all []constant
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
				return true
			}
			literal, ok := spec.Values[0].(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			if value, err := strconv.Unquote(literal.Value); err == nil {
				all = append(all, constant{spec.Names[0].Name, value, spec.Doc.Text() + spec.Comment.Text()})
			}
			return true
		})
	}
	return all, nil
}
