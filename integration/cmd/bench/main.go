// Command bench measures the data path of detour on the local cluster beside the plain route, in turns and in the same run, because
// only the ratio of the two says something on a noisy machine. It prints a table and writes bench/out/bench.json.
//
// With "serve" it is the service that is measured, with "bulk" the client that moves bytes, with "dns" the one that asks for a name: they run
// where the bench puts them.
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
		rate, err := move(ctx, *to, *up, *duration)
		if err != nil {
			return err
		}
		fmt.Println(rate)
		return nil
	case "dns":
		to := flags.String("to", "", "host:port of the server, or empty for that of /etc/resolv.conf")
		name := flags.String("name", "", "what to ask for")
		if err := flags.Parse(args); err != nil {
			return err
		}
		took, err := dnsTime(*to, *name)
		if err != nil {
			return err
		}
		fmt.Println(took)
		return nil
	case "":
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
	return fmt.Errorf("unknown mode %q: serve, bulk, dns, or none", mode)
}
