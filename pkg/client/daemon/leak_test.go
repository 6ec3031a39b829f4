package daemon

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/detour-dev/detour/pkg/client/credential"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == credential.Command { // what the daemon starts: this very program
		fmt.Fprintln(os.Stderr, credential.Run())
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
