// Command notices prints the licenses of everything that detour's binaries link, grouped by text,
// as the file THIRD_PARTY_NOTICES of the repository. It fails when a package has no license, or one
// that detour cannot be distributed under. `make generate` runs it at the root of the repository.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// targets are the binaries that are distributed, on the platforms for which they are built.
var targets = []struct {
	system   string
	packages []string
}{
	{system: "linux", packages: []string{"./cmd/..."}},
	{system: "darwin", packages: []string{"./cmd/detour"}},
	{system: "windows", packages: []string{"./cmd/detour"}},
}

var (
	licenseFile = regexp.MustCompile(`(?i)^(licen[sc]e|copying)([.-].*)?$`)
	noticeFile  = regexp.MustCompile(`(?i)^notice(\.txt|\.md)?$`)
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}

func run(w io.Writer) error {
	texts := map[string][]string{} // license or notice -> the modules that have it
	for _, t := range targets {
		packages, err := linked(t.system, t.packages)
		if err != nil {
			return err
		}
		for _, p := range packages {
			if err := p.collect(texts); err != nil {
				return err
			}
		}
	}
	if err := addGo(texts); err != nil {
		return err
	}
	return write(w, texts)
}

// addGo adds the license of the standard library and the runtime, which all binaries contain.
func addGo(texts map[string][]string) error {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go: %w", err)
	}
	raw, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "LICENSE"))
	if err != nil {
		return fmt.Errorf("read the license of Go: %w", err)
	}
	add(texts, clean(string(raw)), "The Go standard library and runtime")
	return nil
}

// linkedPackage is what `go list` says of a package that a binary links.
type linkedPackage struct {
	ImportPath string
	Dir        string
	Standard   bool
	Module     *struct {
		Path, Version, Dir string
		Main               bool
	}
}

func linked(system string, patterns []string) ([]linkedPackage, error) {
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Dir,Standard,Module"}, patterns...)...)
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list what %s links on %s: %w", strings.Join(patterns, " "), system, err)
	}
	var all []linkedPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p linkedPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the list of packages: %w", err)
		}
		all = append(all, p)
	}
}

// collect adds the license and the notice of p to texts. The license is the nearest one: a
// directory inside a module may have its own.
func (p *linkedPackage) collect(texts map[string][]string) error {
	if p.Standard || p.Module == nil || p.Module.Main {
		return nil
	}
	owner := p.Module.Path + " " + p.Module.Version
	for dir := p.Dir; ; dir = filepath.Dir(dir) {
		licenses, err := files(dir, licenseFile)
		if err != nil {
			return err
		}
		for _, text := range licenses {
			if kind(text) == "" {
				return fmt.Errorf("%s has an unknown license in %s: read it, and add it to kind", owner, dir)
			}
			add(texts, text, owner)
		}
		if len(licenses) > 0 {
			break
		}
		if dir == p.Module.Dir || len(dir) <= len(p.Module.Dir) {
			return fmt.Errorf("package %s of %s has no license", p.ImportPath, owner)
		}
	}
	notices, err := files(p.Module.Dir, noticeFile)
	for _, text := range notices {
		add(texts, text, owner)
	}
	return err
}

// files returns the texts of the files in dir whose names match, in the order of their names.
func files(dir string, name *regexp.Regexp) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, e := range entries {
		isLicense := name.MatchString(e.Name()) && !slices.Contains([]string{".go", ".docs"}, filepath.Ext(e.Name()))
		if e.IsDir() || !isLicense {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		texts = append(texts, clean(string(raw)))
	}
	return texts, nil
}

// clean returns text without differences that nobody sees: line ends and blanks at the ends of
// lines.
func clean(text string) string {
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \t")
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n")
}

func add(texts map[string][]string, text, owner string) {
	if !slices.Contains(texts[text], owner) {
		texts[text] = append(texts[text], owner)
	}
}

// kind returns the name of a license that detour may be distributed with, and nothing for others.
func kind(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	for _, known := range []struct{ name, phrase string }{
		{"Apache-2.0", "Apache License Version 2.0"},
		{"MPL-2.0", "Mozilla Public License"},
		{"ISC", "Permission to use, copy, modify, and"},
		{"MIT", "Permission is hereby granted, free of charge"},
		{"BSD", "Redistribution and use in source and binary forms"},
	} {
		if strings.Contains(text, known.phrase) {
			return known.name
		}
	}
	return ""
}

func write(w io.Writer, texts map[string][]string) error {
	type group struct{ owners, text string }
	var groups []group
	for text, owners := range texts {
		slices.Sort(owners)
		groups = append(groups, group{strings.Join(owners, "\n"), text})
	}
	slices.SortFunc(groups, func(a, b group) int {
		return strings.Compare(a.owners+a.text, b.owners+b.text)
	})
	var page strings.Builder
	page.WriteString("Third-party software in detour's binaries. Generated by `make generate`; do not edit.\n")
	for _, g := range groups {
		fmt.Fprintf(&page, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 80), g.owners, g.text)
	}
	_, err := io.WriteString(w, page.String())
	return err
}
