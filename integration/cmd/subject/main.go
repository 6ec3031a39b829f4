// Command subject runs the service that the suites intercept, and is its client inside of the cluster.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"

	"github.com/detour-dev/detour/integration/subject"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "subject:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		l, err := net.Listen("tcp", args[1])
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		return subject.Serve(l, "cluster")
	case len(args) == 4 && args[0] == "upload":
		return upload(args[1], args[2], args[3])
	}
	return fmt.Errorf("usage: subject serve ADDRESS | subject upload URL BYTES DEVELOPER")
}

// upload sends so many zeros in chunks, and prints the answer.
func upload(url, size, developer string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return fmt.Errorf("the size: %w", err)
	}
	r, err := http.NewRequest(http.MethodPost, url, io.LimitReader(zeros{}, n))
	if err != nil {
		return err
	}
	r.Header.Set("x-dev", developer)
	answer, err := (&http.Client{Transport: &http.Transport{WriteBufferSize: 256 << 10}}).Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
