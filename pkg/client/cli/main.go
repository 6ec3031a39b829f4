package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc/status"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// Main runs the command line of this process and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	return report(os.Stderr, Command(streams).ExecuteContext(ctx))
}

// report prints err, if it has a message for the user, and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return ExitOK
	}
	var ended *commandError
	if errors.As(err, &ended) {
		if ended.err != nil {
			fmt.Fprintln(termSafeWriter{w}, "detour:", message(ended.err))
		}
		return ended.code
	}
	fmt.Fprintln(termSafeWriter{w}, "detour:", message(err))
	return ExitFailure
}

// message returns the text of err without the prefix that gRPC adds to the daemon's errors.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}
