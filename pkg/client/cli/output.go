package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// printFlags are the -o flag of a command and the stream that the command prints to. It implements
// install.Printer.
type printFlags struct {
	out    io.Writer
	format string // json or yaml; empty means text
}

// AddFlags adds -o.
func (p *printFlags) AddFlags(f *pflag.FlagSet) {
	f.StringVarP(&p.format, "output", "o", "", "json or yaml")
}

// Validate refuses formats that detour does not have.
func (p *printFlags) Validate() error {
	switch p.format {
	case "", "json", "yaml":
		return nil
	}
	return fmt.Errorf("-o %s is not an output format: use json or yaml", p.format)
}

// Print prints value in the format of the -o flag. For text it calls text.
func (p *printFlags) Print(value any, text func(io.Writer)) error {
	return p.printTo(p.out, value, text)
}

// printTo is Print to another stream.
func (p *printFlags) printTo(w io.Writer, value any, text func(io.Writer)) error {
	if p.format == "" {
		text(w)
		return nil
	}
	raw, err := encodeJSON(value)
	if err == nil && p.format == "yaml" {
		raw, err = yaml.JSONToYAML(raw)
	} else {
		raw = append(raw, '\n')
	}
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	_, err = w.Write(raw)
	return err
}

// encodeJSON encodes value, which may be a message of protobuf, in the same way each time.
func encodeJSON(value any) ([]byte, error) {
	m, ok := value.(proto.Message)
	if !ok {
		return json.MarshalIndent(value, "", "  ")
	}
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	// protojson varies its spaces on purpose. A second pass makes the output stable.
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	return json.MarshalIndent(v, "", "  ")
}

// orDash returns a dash for an empty cell.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
