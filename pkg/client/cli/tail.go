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

// tailed is one line of `detour tail`.
type tailed struct {
	Time       time.Time `json:"time"`
	Method     string    `json:"method,omitempty"` // none: a connection that is not HTTP
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

func (a *app) tailCommand() *cobra.Command {
	var port string
	cmd := &cobra.Command{
		Use: "tail SERVICE", Short: "Show a service's requests as they are routed", Args: cobra.ExactArgs(1),
		Long: `Shows each request that the service's agents route: when it came, method, path, status, how long it took, who answered, and why.
A request is shown when its answer is complete, one that is upgraded (WebSocket) when it is, a connection that is not HTTP when it ends.
Values of headers, queries and bodies are never shown. Connects first when nothing is connected. Ctrl-C ends.`,
		Example: "  detour tail catalog\n  detour tail catalog -o json | jq .path",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			if err := explain.Name("the service", args[0]); err != nil {
				return err
			}
			if port == "" && cmd.Flags().Changed("port") {
				return errors.New("--port is empty: say which of the service's ports, or leave it out for all")
			}
			return a.tail(cmd.Context(), &tailv1.TailRequest{Service: args[0], Port: port})
		},
	}
	cmd.Flags().StringVar(&port, "port", "", "only this service port, by name or number")
	a.outputFlag(cmd)
	a.modeFlags(cmd)
	return cmd
}

func (a *app) tail(ctx context.Context, req *tailv1.TailRequest) error {
	client, done, err := a.start(ctx)
	if err != nil {
		return err
	}
	defer done()
	if _, err := a.connected(ctx, client); err != nil {
		return err
	}
	stream, err := client.Tail(ctx, req)
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
			fmt.Fprintln(harmlessly{a.ErrOut}, m.Note)
		}
		for _, r := range m.Requests {
			if err := a.printTailed(a.Out, tailedOf(r)); err != nil {
				return err
			}
		}
		if m.Missed > 0 {
			fmt.Fprintf(a.ErrOut, "%d requests are not shown: they came faster than they could be told\n", m.Missed)
		}
	}
}

func tailedOf(r *tailv1.Request) tailed {
	t := tailed{
		Time: r.At.AsTime().Local(), Method: r.Method, Path: r.Path, Status: r.Status, Millis: float64(r.Duration.AsDuration().Microseconds()) / 1000,
		ServedBy: "nobody", Laptop: r.Laptop, Why: r.Why, Pod: r.Pod, Port: r.Port,
	}
	switch r.ServedBy {
	case tailv1.ServedBy_SERVED_BY_CLUSTER:
		t.ServedBy = "cluster"
	case tailv1.ServedBy_SERVED_BY_LAPTOP:
		t.ServedBy = "laptop"
	}
	if r.GrpcStatus != nil {
		t.GRPCStatus = codes.Code(*r.GrpcStatus).String()
	}
	return t
}

// printTailed writes one line, one JSON object in a line, or one YAML document.
func (a *app) printTailed(w io.Writer, t tailed) error {
	var raw []byte
	var err error
	switch a.output {
	case "json":
		raw, err = json.Marshal(t)
		raw = append(raw, '\n')
	case "yaml":
		raw, err = yaml.Marshal(t)
		raw = append([]byte("---\n"), raw...)
	default:
		method, path, outcome := t.Method, t.Path, "-"
		switch {
		case method == "":
			method, path = "TCP", "-"
		case t.GRPCStatus != "":
			outcome = t.GRPCStatus
		case t.Status > 0:
			outcome = fmt.Sprint(t.Status)
		}
		took := time.Duration(t.Millis * float64(time.Millisecond)).Round(10 * time.Microsecond)
		raw = fmt.Appendf(nil, "%s %-7s %-30s %-4s %9s  %-7s  %s\n", t.Time.Format("15:04:05.000"), harmless(method), harmless(path), outcome, took, t.ServedBy, harmless(t.Why))
	}
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	_, err = w.Write(raw)
	return err
}
