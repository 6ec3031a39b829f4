package vif_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/detour-dev/detour/pkg/vif/viftest"
)

func TestMain(m *testing.M) {
	viftest.Isolate()
	goleak.VerifyTestMain(m)
}
