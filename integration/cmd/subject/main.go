// Command subject runs the service that the suites intercept, and is its client inside of the
// cluster.
package main

import (
	"errors"
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
	case len(args) == 5 && args[0] == "upload":
		return upload(args[1], args[2], args[3], args[4])
	case len(args) == 4 && args[0] == "download":
		return download(args[1], args[2], args[3])
	}
	return errors.New("usage: subject serve ADDRESS | subject upload 1|2 URL BYTES DEVELOPER | " +
		"subject download 1|2 URL DEVELOPER")
}

// upload sends so many zeros without saying how many, by a version of HTTP, and prints the answer.
func upload(version, url, size, developer string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return fmt.Errorf("the size: %w", err)
	}
	answer, err := ask(version, url, developer, io.LimitReader(subject.Zeros{}, n))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

// download prints who answered, and with how many bytes.
func download(version, url, developer string) error {
	answer, err := ask(version, url, developer, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, answer.Body)
	if err != nil {
		return err
	}
	fmt.Println(answer.Header.Get("Served-By"), n)
	return nil
}

func ask(version, url, developer string, body io.Reader) (*http.Response, error) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == "1")
	protocols.SetUnencryptedHTTP2(version == "2")
	r, err := http.NewRequest(http.MethodPost, url, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("x-dev", developer)
	return (&http.Client{Transport: &http.Transport{Protocols: protocols, WriteBufferSize: 256 << 10}}).Do(r)
}
