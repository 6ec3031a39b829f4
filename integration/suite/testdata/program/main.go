// Command program is what a developer runs on the laptop: it is linked statically, so that nothing
// can be preloaded into it.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "fetch": // URL
		c := &http.Client{Timeout: 10 * time.Second}
		resp, err := c.Get(os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(os.Stdout, resp.Body)
	case "serve": // ADDRESS TEXT EXIT-CODE: until SIGTERM
		code, err := strconv.Atoi(os.Args[4])
		if err != nil {
			os.Exit(2)
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		go func() {
			err := http.ListenAndServe(os.Args[2],
				http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Args[3]) }))
			fmt.Fprintln(os.Stderr, err)
			os.Exit(4)
		}()
		<-ctx.Done()
		os.Exit(code)
	}
}
