// Command testrun compiles all test programs first and runs them afterwards, because a test that
// shares the machine with a compiler is slow in ways that no test can foresee. At the end it prints
// the slowest tests.
//
//	testrun build [-race] -o DIRECTORY PACKAGE...
//	testrun run [-p N] [-v] [-timeout D] [-parallel N] [-run REGEXP] [-first SUFFIX] DIRECTORY
//
// DIRECTORY holds the test programs and an index of them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// program is one compiled test program.
type program struct {
	ImportPath string
	Dir        string // the package's directory, in which its tests run
	File       string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: testrun build|run")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "build":
		race := flags.Bool("race", false, "compile with the race detector")
		directory := flags.String("o", "", "the directory for the test programs")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return build(ctx, *directory, *race, flags.Args())
	case "run":
		var o options
		flags.IntVar(&o.programs, "p", 1, "how many test programs run at a time")
		flags.BoolVar(&o.verbose, "v", false, "print the output of every test while it runs")
		flags.StringVar(&o.timeout, "timeout", "10m", "the time that one test program has")
		flags.IntVar(&o.parallel, "parallel", 4, "how many parallel tests of one program run at a time")
		flags.StringVar(&o.first, "first", "", "the end of the import path of the program that starts first")
		flags.StringVar(&o.pattern, "run", "", "run only the tests that match")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return runAll(ctx, o, flags.Arg(0))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func indexFile(directory string) string { return filepath.Join(directory, "index.json") }

// build compiles the test programs of all packages that have tests, and writes the index.
func build(ctx context.Context, directory string, race bool, packages []string) error {
	directory, err := filepath.Abs(directory)
	if err != nil {
		return err
	}
	all, err := list(ctx, packages)
	if err != nil {
		return err
	}
	_ = os.Remove(indexFile(directory)) // an index must not outlive the programs that it lists
	// Two packages of the same name would have the same file name: each round compiles at most one
	// of them.
	for round := 0; len(all) > 0; round++ {
		into := filepath.Join(directory, fmt.Sprint(round))
		if err := os.MkdirAll(into, 0o755); err != nil {
			return err
		}
		var now, later []program
		taken := map[string]bool{}
		for _, p := range all {
			name := path.Base(p.ImportPath)
			if taken[name] {
				later = append(later, p)
				continue
			}
			taken[name] = true
			p.File = filepath.Join(into, name+".test")
			now = append(now, p)
		}
		if err := compile(ctx, into, race, now); err != nil {
			return err
		}
		if err := addToIndex(directory, now); err != nil {
			return err
		}
		all = later
	}
	return nil
}

// list finds the packages that have tests.
func list(ctx context.Context, packages []string) ([]program, error) {
	const format = `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}`
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-f", format}, packages...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages: %w", err)
	}
	var all []program
	for line := range strings.Lines(string(out)) {
		if importPath, dir, found := strings.Cut(strings.TrimSpace(line), " "); found {
			all = append(all, program{ImportPath: importPath, Dir: dir})
		}
	}
	return all, nil
}

func compile(ctx context.Context, into string, race bool, programs []program) error {
	args := []string{"test", "-c", "-o", into + "/"}
	if race {
		args = append(args, "-race")
	}
	for _, p := range programs {
		args = append(args, p.ImportPath)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compile the tests: %w", err)
	}
	return nil
}

func addToIndex(directory string, programs []program) error {
	before, err := readIndex(directory)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	raw, err := json.Marshal(append(before, programs...))
	if err != nil {
		return err
	}
	return os.WriteFile(indexFile(directory), raw, 0o644)
}

func readIndex(directory string) ([]program, error) {
	f, err := os.Open(indexFile(directory))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	var all []program
	return all, json.Unmarshal(raw, &all)
}
