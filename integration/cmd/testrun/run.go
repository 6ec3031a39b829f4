package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// slowestShown is how many of the slowest tests the table at the end has.
const slowestShown = 10

type options struct {
	programs, parallel int
	verbose            bool
	timeout, pattern   string
	first              string // the end of the import path of a program that takes long
}

// event is one line of `go tool test2json`.
type event struct {
	Action, Test, Output string
	Elapsed              float64 // in seconds
}

// result is the end of one test.
type result struct {
	pkg, test string
	took      time.Duration
}

// report gathers what the test programs print.
type report struct {
	options
	mu sync.Mutex
	// mu guards the fields below, and keeps the lines of two programs apart.
	results     []result
	failed      []string // programs
	failedTests []string
}

// waited is what kit.Parallel of the suite logs: how many seconds a test waited for others.
var waited = regexp.MustCompile(`waited (\d+\.\d)s for its turn`)

// runAll runs the test programs of a directory and prints the slowest tests. It returns an error
// when a test failed.
func runAll(ctx context.Context, o options, directory string) error {
	programs, err := readIndex(directory)
	if err != nil {
		return fmt.Errorf("read the index, which `testrun build` writes: %w", err)
	}
	slices.SortStableFunc(programs, func(a, b program) int { return o.rank(a) - o.rank(b) })
	r := &report{options: o}
	free := make(chan struct{}, max(o.programs, 1))
	var wg sync.WaitGroup
	for _, p := range programs {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			r.run(ctx, p)
		})
	}
	wg.Wait()
	r.printSlowest()
	if len(r.failedTests) > 0 {
		fmt.Println("the failed tests:")
		for _, test := range r.failedTests {
			fmt.Println("  ", test)
		}
	}
	if len(r.failed) > 0 {
		slices.Sort(r.failed)
		return fmt.Errorf("failed: %s", strings.Join(r.failed, ", "))
	}
	return nil
}

// rank is lower for a program that starts before others.
func (o options) rank(p program) int {
	if o.first != "" && strings.HasSuffix(p.ImportPath, o.first) {
		return 0
	}
	return 1
}

// run runs one test program in its package's directory. An interrupt reaches the program, so that
// its tests can clean up.
func (r *report) run(ctx context.Context, p program) {
	args := []string{
		"tool", "test2json", "-t", "-p", p.ImportPath, p.File, "-test.v=test2json", "-test.paniconexit0",
		"-test.timeout=" + r.timeout, fmt.Sprintf("-test.parallel=%d", r.parallel),
	}
	if r.pattern != "" {
		args = append(args, "-test.run="+r.pattern)
	}
	start := time.Now()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = p.Dir
	cmd.Env = append(os.Environ(), "PWD="+p.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.finish(p, start, err)
		return
	}
	tests := running{}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if json.Unmarshal(line, &e) == nil {
			r.note(p, e, tests)
		}
		if err != nil {
			break
		}
	}
	err = cmd.Wait()
	if err != nil {
		r.print(tests.of("").output...)
	}
	r.finish(p, start, err)
}

// running are the tests of one program that have not ended, by their names. The program's own
// output has the name "".
type running map[string]*runningTest

type runningTest struct {
	output []string // unless it was printed at once
	waited time.Duration
}

func (r running) of(test string) *runningTest {
	if r[test] == nil {
		r[test] = &runningTest{}
	}
	return r[test]
}

// note handles one event of a test program.
func (r *report) note(p program, e event, tests running) {
	test := tests.of(e.Test)
	switch e.Action {
	case "output":
		if m := waited.FindStringSubmatch(e.Output); m != nil {
			seconds, _ := strconv.ParseFloat(m[1], 64) // the expression leaves nothing to fail
			test.waited = time.Duration(seconds * float64(time.Second))
		}
		if r.verbose {
			r.print(e.Output)
			return
		}
		test.output = append(test.output, e.Output)
	case "pass", "skip", "fail":
		if e.Test == "" {
			return
		}
		if e.Action == "fail" {
			r.print(test.output...)
		}
		delete(tests, e.Test)
		if !strings.Contains(e.Test, "/") {
			took := time.Duration(e.Elapsed*float64(time.Second)) - test.waited
			r.add(result{pkg: p.ImportPath, test: e.Test, took: took}, e.Action == "fail")
		}
	}
}

func (r *report) add(one result, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, one)
	if failed {
		r.failedTests = append(r.failedTests, one.test+"  "+one.pkg)
	}
}

func (r *report) print(lines ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range lines {
		fmt.Print(line)
	}
}

func (r *report) finish(p program, start time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	verdict := "ok"
	if err != nil {
		verdict = "FAIL"
		r.failed = append(r.failed, p.ImportPath)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signaled() {
			fmt.Printf("%s: %v\n", p.ImportPath, err)
		}
	}
	fmt.Printf("%-4s %s %.1fs\n", verdict, p.ImportPath, time.Since(start).Seconds())
}

func (r *report) printSlowest() {
	slices.SortFunc(r.results, func(a, b result) int { return int(b.took - a.took) })
	fmt.Println("the slowest tests:")
	for _, one := range r.results[:min(slowestShown, len(r.results))] {
		fmt.Printf("%8.1fs  %s  %s\n", one.took.Seconds(), one.test, one.pkg)
	}
}
