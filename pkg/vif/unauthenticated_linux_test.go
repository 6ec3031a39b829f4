package vif_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/viftest"
)

func TestLaptopsStreamIsAuthenticated(t *testing.T) {
	hub, _, _ := viftest.Pair(t)
	unauthenticated := func() int {
		_, n := hub.Paths().Streams()
		return n
	}
	require.Eventually(t, func() bool { return unauthenticated() == 0 }, viftest.Timeout, 10*time.Millisecond)
	_, theirs := viftest.TCPPair(t)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- hub.ServeStream(ctx, theirs) }()
	require.Eventually(t, func() bool { return unauthenticated() == 1 }, viftest.Timeout, 10*time.Millisecond)
	c, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	viftest.RequireEcho(t, c)
	stop()
	<-served
	require.Zero(t, unauthenticated())
}
