// Command lab compares two builds of detour on one machine: it runs rows of the bench with each
// build in turns (A B A B ...), and prints how B compares with A. On a shared machine, figures of
// two runs that are hours apart say little about a change; turns of a minute see the same machine.
//
// The builds are two checkouts. Each turn runs the bench of its checkout on the local cluster,
// which has to run already, so that no turn starts or stops it:
//
//	git worktree add /tmp/before main~1
//	make cluster-up
//	cd integration && go run ./cmd/lab -a /tmp/before -b .. -rows out.udp -turns 4
//	make cluster-down
//
// A change of less than the spread of the turns, which the table shows as lowest and highest value,
// is noise: take more turns. The rows and their units are explained in docs/performance.md. The lab
// takes root, as the bench does.
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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// options are the flags of the command.
type options struct {
	builds [2]string // checkouts A and B
	rows   string    // prefix of the names of the bench's rows
	turns  int
	each   time.Duration
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.StringVar(&o.builds[0], "a", "", "the checkout of build A, which B is compared with")
	flags.StringVar(&o.builds[1], "b", "..", "the checkout of build B")
	flags.StringVar(&o.rows, "rows", "", "the prefix of the bench's rows to measure, such as out.udp or in.http.rps16")
	flags.IntVar(&o.turns, "turns", 4, "how often each build is measured")
	flags.DurationVar(&o.each, "each", 3*time.Second, "how long one measurement takes")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case o.builds[0] == "" || o.rows == "":
		return o, errors.New("give both -a, the checkout to compare with, and -rows, what to measure")
	case o.turns < 1:
		return o, errors.New("-turns is at least 1")
	}
	for i, dir := range o.builds {
		absolute, err := filepath.Abs(dir)
		if err != nil {
			return o, fmt.Errorf("find the checkout %s: %w", dir, err)
		}
		o.builds[i] = absolute
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	status := exec.CommandContext(ctx, filepath.Join(o.builds[1], "bin", "cluster"), "status")
	if text, err := status.CombinedOutput(); err != nil || !strings.Contains(string(text), "is ready") {
		return errors.New("the local cluster does not run: start it with `make cluster-up`")
	}
	for _, dir := range o.builds { // nothing is compiled between two turns
		if err := inCheckout(ctx, dir, "true"); err != nil {
			return fmt.Errorf("build %s: %w", dir, err)
		}
	}
	results := table{}
	for turn := range o.turns {
		for build, dir := range o.builds {
			fmt.Fprintf(os.Stderr, "== turn %d of %d: build %c\n", turn+1, o.turns, 'A'+build)
			figures, err := measure(ctx, dir, o)
			if err != nil {
				return fmt.Errorf("turn %d of build %c: %w", turn+1, 'A'+build, err)
			}
			results.add(build, o.rows, figures)
		}
	}
	return results.print(out)
}

// inCheckout runs a command against the local cluster with the programs and images of a checkout.
func inCheckout(ctx context.Context, dir string, command ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "integration", "run.sh"), command...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stderr, os.Stderr
	// The bench puts the cluster back when it is interrupted.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 2 * time.Minute
	return cmd.Run()
}

// figure is a row of the bench's report.
type figure struct {
	Name  string   `json:"name"`
	Unit  string   `json:"unit"`
	Value float64  `json:"value"`
	Ratio *float64 `json:"ratio"`
}

// measure runs the bench of a checkout once.
func measure(ctx context.Context, dir string, o options) ([]figure, error) {
	report := filepath.Join(dir, "bench", "out", "bench.json")
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the report of an earlier turn: %w", err)
	}
	bench := []string{"bin/bench", "-root", dir, "-only", o.rows, "-rounds", "1", "-each", o.each.String()}
	if err := inCheckout(ctx, dir, bench...); err != nil {
		return nil, fmt.Errorf("run the bench: %w", err)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	var figures []figure
	if err := json.Unmarshal(text, &figures); err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	return figures, nil
}

// table collects the figures of both builds, row by row in the order of the bench.
type table struct{ rows []*row }

type row struct {
	name, unit string
	values     [2][]float64
	ofPlain    [2][]float64 // the same as ratio to the plain route of the same turn
}

// add adds the figures of one turn whose names begin with prefix.
func (t *table) add(build int, prefix string, figures []figure) {
	for _, f := range figures {
		if !strings.HasPrefix(f.Name, prefix) {
			continue
		}
		i := slices.IndexFunc(t.rows, func(r *row) bool { return r.name == f.Name })
		if i < 0 {
			i = len(t.rows)
			t.rows = append(t.rows, &row{name: f.Name, unit: f.Unit})
		}
		r := t.rows[i]
		r.values[build] = append(r.values[build], f.Value)
		if f.Ratio != nil {
			r.ofPlain[build] = append(r.ofPlain[build], *f.Ratio)
		}
	}
}

// print prints a line for each row: the medians of both builds, and their ratio as measured and as
// ratio of the plain route, which leaves out what others did on the machine during a turn.
func (t *table) print(out io.Writer) error {
	if len(t.rows) == 0 {
		return errors.New("the bench has no such rows")
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "name\tunit\tA\tlowest-highest\tB\tlowest-highest\tB/A\tof plain\t")
	for _, r := range t.rows {
		a, b := r.values[0], r.values[1]
		if len(a) == 0 || len(b) == 0 {
			fmt.Fprintf(w, "%s\t%s\tonly one of the builds has this row\t\t\t\t\t\t\n", r.name, r.unit)
			continue
		}
		ofPlain := "-"
		if len(r.ofPlain[0]) > 0 && len(r.ofPlain[1]) > 0 {
			ofPlain = fmt.Sprintf("%.3f", median(r.ofPlain[1])/median(r.ofPlain[0]))
		}
		fmt.Fprintf(w, "%s\t%s\t%.4g\t%.4g-%.4g\t%.4g\t%.4g-%.4g\t%.3f\t%s\t\n", r.name, r.unit,
			median(a), slices.Min(a), slices.Max(a),
			median(b), slices.Min(b), slices.Max(b), median(b)/median(a), ofPlain)
	}
	return w.Flush()
}

// median returns the middle of the values, or the mean of the middle two.
func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
