package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/yaml"

	"github.com/detour-dev/detour/pkg/client/explain"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

// tailOptions are the flags and arguments of `detour tail`.
type tailOptions struct {
	sessionOptions
	printFlags
	service string
	port    string
	changed func(flag string) bool
}

func newTailCommand(g *globalOptions) *cobra.Command {
	o := &tailOptions{sessionOptions: sessionOptions{globalOptions: g}, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:   "tail SERVICE",
		Short: "Show a service's requests as they are routed",
		Args:  cobra.ExactArgs(1),
		Long: `Shows each request that the service's agents route: its time, method, path, status and duration, who
answered it, and why. A request is shown when its response is complete. A request that is upgraded
(WebSocket) is shown when the upgrade is complete, and a connection that is not HTTP when it ends.
Values of headers, queries and bodies are never shown. It connects first if detour is not connected.
Press Ctrl-C to stop.`,
		Example: "  detour tail catalog\n  detour tail catalog -o json | jq .path",
		RunE:    runE(o),
	}
	o.changed = cmd.Flags().Changed
	cmd.Flags().StringVar(&o.port, "port", "", "show only requests to this service port, by name or number")
	o.printFlags.AddFlags(cmd.Flags())
	o.sessionOptions.addFlags(cmd.Flags())
	return cmd
}

// Complete implements commandOptions.
func (o *tailOptions) Complete(args []string) error {
	o.service = args[0]
	return nil
}

// Validate implements commandOptions.
func (o *tailOptions) Validate() error {
	if err := o.printFlags.Validate(); err != nil {
		return err
	}
	if err := explain.Name("the service", o.service); err != nil {
		return err
	}
	if o.port == "" && o.changed("port") {
		return errors.New("--port is empty: name one of the service's ports, or omit --port to see all of them")
	}
	return o.sessionOptions.validate()
}

// Run prints requests until ctx ends.
func (o *tailOptions) Run(ctx context.Context) error {
	s, err := ensureSession(ctx, &o.sessionOptions)
	if err != nil {
		return err
	}
	defer s.Close()
	stream, err := s.Tail(ctx, &tailv1.TailRequest{Service: o.service, Port: o.port})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if ctx.Err() != nil || errors.Is(err, io.EOF) {
			return nil
		}
		if status.Code(err) == codes.Canceled {
			return errors.New("the daemon has ended")
		}
		if err != nil {
			return err
		}
		if m.Note != "" {
			fmt.Fprintln(termSafeWriter{o.ErrOut}, m.Note)
		}
		for _, r := range m.Requests {
			if err := printRequest(o.Out, o.format, newRequestLine(r)); err != nil {
				return err
			}
		}
		if m.Missed > 0 {
			fmt.Fprintf(o.ErrOut, "%d requests are not shown: they arrived faster than they could be reported\n",
				m.Missed)
		}
	}
}

// requestLine is one line of `detour tail`.
type requestLine struct {
	Time       time.Time `json:"time"`
	Method     string    `json:"method,omitempty"` // empty for a connection that is not HTTP
	Path       string    `json:"path,omitempty"`
	Status     uint32    `json:"status,omitempty"`
	GRPCStatus string    `json:"grpcStatus,omitempty"`
	Millis     float64   `json:"durationMs"`
	ServedBy   string    `json:"servedBy"` // laptop, cluster or nobody
	Laptop     string    `json:"laptop,omitempty"`
	Why        string    `json:"why"`
	Pod        string    `json:"pod"`
	Port       uint32    `json:"port"`
}

func newRequestLine(r *tailv1.Request) requestLine {
	l := requestLine{
		Time:     r.At.AsTime().Local(),
		Method:   r.Method,
		Path:     r.Path,
		Status:   r.Status,
		Millis:   float64(r.Duration.AsDuration().Microseconds()) / 1000,
		ServedBy: "nobody",
		Laptop:   r.Laptop,
		Why:      r.Why,
		Pod:      r.Pod,
		Port:     r.Port,
	}
	switch r.ServedBy {
	case tailv1.ServedBy_SERVED_BY_CLUSTER:
		l.ServedBy = "cluster"
	case tailv1.ServedBy_SERVED_BY_LAPTOP:
		l.ServedBy = "laptop"
	}
	if r.GrpcStatus != nil {
		l.GRPCStatus = codes.Code(*r.GrpcStatus).String()
	}
	return l
}

// printRequest writes one line of text, one JSON object on a line, or one YAML document.
func printRequest(w io.Writer, format string, l requestLine) error {
	var raw []byte
	var err error
	switch format {
	case "json":
		raw, err = json.Marshal(l)
		raw = append(raw, '\n')
	case "yaml":
		raw, err = yaml.Marshal(l)
		raw = append([]byte("---\n"), raw...)
	default:
		raw = l.text()
	}
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	_, err = w.Write(raw)
	return err
}

func (l requestLine) text() []byte {
	method, path, outcome := l.Method, l.Path, "-"
	switch {
	case method == "":
		method, path = "TCP", "-"
	case l.GRPCStatus != "":
		outcome = l.GRPCStatus
	case l.Status > 0:
		outcome = fmt.Sprint(l.Status)
	}
	duration := time.Duration(l.Millis * float64(time.Millisecond)).Round(10 * time.Microsecond)
	return fmt.Appendf(nil, "%s %-7s %-30s %-4s %9s  %-7s  %s\n", l.Time.Format("15:04:05.000"),
		termSafe(method), termSafe(path), outcome, duration, l.ServedBy, termSafe(l.Why))
}
