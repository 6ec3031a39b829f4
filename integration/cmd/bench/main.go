// Command bench measures the data path of detour on the local cluster beside the plain route, in
// turns and in the same run, because only the ratio of the two says something on a noisy machine.
// It prints a table and writes bench/out/bench.json.
//
// With "serve" it is the service that is measured, with another word a client: "bulk" moves bytes,
// "raw" does that on a bare stream to the cluster, "ask" makes small requests, "many" opens
// connections, "dns" asks for a name. They run where the bench puts them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	mode := ""
	if len(args) > 0 && args[0][0] != '-' {
		mode, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("bench "+mode, flag.ContinueOnError)
	switch mode {
	case "":
		return measure(ctx, flags, args)
	case "serve":
		web := flags.String("http", ":8080", "where to answer HTTP")
		bulk := flags.String("bulk", ":9000", "where to take and give bytes")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return serve(ctx, *web, *bulk)
	case "bulk":
		to := flags.String("to", "", "host:port of the service")
		up := flags.Bool("up", false, "send instead of receive")
		web := flags.Bool("web", false, "over HTTP, with the mark")
		duration := flags.Duration("for", 3*time.Second, "how long")
		if err := flags.Parse(args); err != nil {
			return err
		}
		move := bulkRate
		if *web {
			move = webRate
		}
		return printed(move(ctx, *to, *up, *duration))
	}
	return client(ctx, mode, flags, args)
}

// client runs the other modes, which the benchmark starts itself.
func client(ctx context.Context, mode string, flags *flag.FlagSet, args []string) error {
	switch mode {
	case "raw":
		kubeconfig := flags.String("kubeconfig", "", "of the laptop")
		up := flags.Bool("up", false, "send instead of receive")
		duration := flags.Duration("for", 3*time.Second, "how long")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return printed(rawRate(ctx, *kubeconfig, *up, *duration))
	case "ask":
		to := flags.String("to", "", "host:port of the service")
		duration := flags.Duration("for", 3*time.Second, "how long")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return printed(ask(ctx, *to, *duration))
	case "many":
		to := flags.String("to", "", "host:port of the service")
		open := flags.Int("open", 2000, "how many connections are open at once")
		rate := flags.Int("rate", 200, "how many are new each second")
		duration := flags.Duration("for", time.Minute, "how long")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return printed(many(ctx, *to, *open, *rate, *duration))
	case "dns":
		to := flags.String("to", "", "host:port of the server, or empty for that of /etc/resolv.conf")
		name := flags.String("name", "", "what to ask for")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return printed(dnsTime(*to, *name))
	}
	return fmt.Errorf("unknown mode %q: serve, bulk, raw, ask, many, dns, or none", mode)
}

// measure runs the whole benchmark.
func measure(ctx context.Context, flags *flag.FlagSet, args []string) error {
	b := bench{}
	flags.StringVar(&b.root, "root", "..", "the repository")
	flags.IntVar(&b.rounds, "rounds", 3, "how often each pair is measured; the median counts")
	flags.DurationVar(&b.each, "each", 3*time.Second, "how long one measurement takes")
	flags.StringVar(&b.only, "only", "", "the prefix of the names to measure, such as idle or out")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return b.run(ctx)
}

// printed ends a client: with its figure on a line.
func printed(figure float64, err error) error {
	if err != nil {
		return err
	}
	fmt.Println(figure)
	return nil
}
