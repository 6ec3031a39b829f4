// Command queue is a work queue for the suite: a NATS server with JetStream, a worker that takes
// messages one by one, something that puts them in, and an account of who did what.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	work = "WORK" // subject work
	done = "DONE" // subjects done.WHO
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "queue:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func run(ctx context.Context, args []string) error {
	commands := map[string]func(context.Context, jetstream.JetStream, string) error{
		"worker":  worker,
		"publish": publish,
		"done":    account,
	}
	if len(args) == 0 || (args[0] != "server" && commands[args[0]] == nil) {
		return errors.New("usage: queue server|worker|publish|done [-server URL] [-who NAME]")
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	url := f.String("server", nats.DefaultURL, "where the queue is")
	who := f.String("who", "", "the worker's name")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] == "server" {
		return serve(ctx)
	}
	conn, err := nats.Connect(*url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(200*time.Millisecond))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", *url, err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	return commands[args[0]](ctx, js, *who)
}

func serve(ctx context.Context) error {
	s, err := server.NewServer(&server.Options{
		Host: "0.0.0.0", Port: nats.DefaultPort, JetStream: true,
		StoreDir: os.TempDir(), NoSigs: true,
	})
	if err != nil {
		return fmt.Errorf("make the server: %w", err)
	}
	s.ConfigureLogger()
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	conn, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		return fmt.Errorf("connect to the server: %w", err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	for _, c := range []jetstream.StreamConfig{
		{
			Name: work, Subjects: []string{"work"}, Retention: jetstream.WorkQueuePolicy,
			Storage: jetstream.MemoryStorage,
		},
		{Name: done, Subjects: []string{"done.*"}, Storage: jetstream.MemoryStorage},
	} {
		if _, err := js.CreateStream(ctx, c); err != nil {
			return fmt.Errorf("make the stream %s: %w", c.Name, err)
		}
	}
	<-ctx.Done()
	return nil
}

// worker takes one message after the other. When it is told to end it finishes the one that it has.
func worker(ctx context.Context, js jetstream.JetStream, who string) error {
	finishing := context.WithoutCancel(ctx)
	var queue jetstream.Consumer
	for queue == nil {
		var err error
		if queue, err = js.CreateOrUpdateConsumer(ctx, work, jetstream.ConsumerConfig{
			Durable:   "workers",
			AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second,
		}); err != nil {
			fmt.Fprintln(os.Stderr, "waiting for the queue:", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	fmt.Fprintln(os.Stderr, "working")
	for ctx.Err() == nil {
		batch, err := queue.Fetch(1, jetstream.FetchMaxWait(500*time.Millisecond))
		if err != nil {
			fmt.Fprintln(os.Stderr, "taking a message failed:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		for m := range batch.Messages() {
			time.Sleep(20 * time.Millisecond) // the work
			if _, err := js.Publish(finishing, "done."+who, m.Data()); err != nil {
				return fmt.Errorf("say what is done: %w", err)
			}
			if err := m.DoubleAck(finishing); err != nil {
				return fmt.Errorf("acknowledge: %w", err)
			}
		}
	}
	return nil
}

// publish puts in numbered messages until standard input ends, and prints how many.
func publish(ctx context.Context, js jetstream.JetStream, _ string) error {
	ended := make(chan struct{})
	go func() { // ends with the process at the latest
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			fmt.Println(n)
			return nil
		case <-tick.C:
		}
		if _, err := js.Publish(ctx, "work", []byte(strconv.Itoa(n))); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
}

// account prints by whom each message was done, in the order in which they were.
func account(ctx context.Context, js jetstream.JetStream, _ string) error {
	stream, err := js.Stream(ctx, done)
	if err != nil {
		return err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return err
	}
	all := [][2]string{}
	for n := info.State.FirstSeq; n > 0 && n <= info.State.LastSeq; n++ {
		m, err := stream.GetMsg(ctx, n)
		if err != nil {
			return fmt.Errorf("read message %d: %w", n, err)
		}
		all = append(all, [2]string{string(m.Data), strings.TrimPrefix(m.Subject, "done.")})
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}
