// Command detour is the laptop's side: the command line and the daemon.
package main

import (
	"os"

	"github.com/detour-dev/detour/pkg/client/cli"
)

func main() { os.Exit(cli.Main()) }
