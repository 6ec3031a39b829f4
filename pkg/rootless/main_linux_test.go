package rootless

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/detour-dev/detour/pkg/vif/viftest"
)

// TestMain is this program as a test, or as the helper that the tests start.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == HelperCommand {
		if err := RunHelper(os.NewFile(3, "daemon")); err != nil {
			fmt.Fprintln(os.Stderr, "netns-helper:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	viftest.Isolate()
	goleak.VerifyTestMain(m)
}
