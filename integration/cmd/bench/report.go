package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// figure is one line of the report. Plain is the same without detour, in the same unit and run; it
// and Ratio (Value/Plain) are null where there is nothing to compare with. Raw is what the same
// path carries without the tunnel, where that can be had.
type figure struct {
	Name  string   `json:"name"`
	Unit  string   `json:"unit"`
	Value float64  `json:"value"`
	Plain *float64 `json:"plain"`
	Ratio *float64 `json:"ratio"`
	Raw   *float64 `json:"raw,omitempty"`
}

func compared(name, unit string, value, plain float64) figure {
	ratio := value / plain
	return figure{Name: name, Unit: unit, Value: value, Plain: &plain, Ratio: &ratio}
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

func report(root string, figures []figure) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "name\tunit\tdetour\tplain\tratio\traw\tof raw\t")
	for _, f := range figures {
		plain, ratio := "-", "-"
		if f.Plain != nil {
			plain, ratio = fmt.Sprintf("%.4g", *f.Plain), fmt.Sprintf("%.3f", *f.Ratio)
		}
		raw, ofRaw := "-", "-"
		if f.Raw != nil {
			raw, ofRaw = fmt.Sprintf("%.4g", *f.Raw), fmt.Sprintf("%.3f", f.Value / *f.Raw)
		}
		fmt.Fprintf(w, "%s\t%s\t%.4g\t%s\t%s\t%s\t%s\t\n", f.Name, f.Unit, f.Value, plain, ratio, raw, ofRaw)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	out := filepath.Join(root, "bench", "out", "bench.json")
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	if err := os.WriteFile(out, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	fmt.Println("written to bench/out/bench.json")
	return nil
}
