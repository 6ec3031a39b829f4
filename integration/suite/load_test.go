package suite

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// Three developers and everybody else share a service of three pods on two nodes. Under load the
// right edition answers every request, and streams of every kind stay whole and with the edition
// that they started at, while intercepts come and go. DETOUR_LOAD makes the test longer than every
// run has time for.
func TestTogether(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Subject), kit.Uses(kit.Machine))
	// Slow enough for a busy machine: a laptop that does not accept a connection within two seconds
	// counts as gone.
	duration, pause := 15*time.Second, 100*time.Millisecond
	if text := os.Getenv("DETOUR_LOAD"); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		require.NoError(t, err)
		pause = 20 * time.Millisecond
	}
	kit.DeploySubject(t)
	alice, bob, carol := kit.NewLaptop(t), kit.NewLaptop(t), kit.NewLaptop(t)
	alice.ServeSubject("alice")
	bob.ServeSubject("bob")
	copies := carol.CountRequests()
	kit.Connect(t)
	alice.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	pods := kit.Query(t, "shop", "pods -l app=subject --field-selector status.phase=Running",
		"{.items[*].spec.nodeName}")
	nodes := strings.Fields(pods)
	slices.Sort(nodes)
	require.Len(t, slices.Compact(nodes), len(strings.Fields(kit.Kubectl(t, "get", "nodes", "-o", "name"))),
		"the pods are on %s", pods)

	h := kit.NewStreams(t)
	kinds := kit.StreamKinds(t)
	load := kit.NewMixture(t, 64, pause)
	closers := []func(){h.Open(kinds, "alice", "alice"), h.Open(kinds, "bob", "cluster"), h.Open(kinds, "", "cluster")}
	rounds := 0
	for start := time.Now(); rounds < 2 || time.Since(start) < duration; rounds++ {
		load.BobIs("")
		bob.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=bob", "-n", "shop")
		load.BobIs("bob")
		ofBob := h.Open(kinds, "bob", "bob")
		copied := copies.Load()
		carol.Detour("intercept", "subject", "--port", "18080", "--mode", "wiretap", "-n", "shop")
		ofOthers := []func(){h.Open(kinds, "alice", "alice"), h.Open(kinds, "", "cluster")}
		kit.Eventually(t, func() bool { return copies.Load() > copied })
		carol.Detour("leave", "subject")
		ofBob() // streams on a laptop end with its intercept
		load.BobIs("")
		if rounds%2 == 0 {
			bob.Detour("leave", "subject")
		} else { // his laptop still answers the requests that it has
			bob.Detour("quit")
			bob.Detour("connect", "-n", "shop")
		}
		load.BobIs("cluster")
		ofOthers = append(ofOthers, h.Open(kinds, "bob", "cluster"))
		for _, end := range ofOthers {
			end()
		}
	}
	before := h.Messages.Load()
	kit.Eventually(t, func() bool { return h.Messages.Load() > before+100 }, "all go on")
	asked, wrong := load.Stop()
	for _, end := range closers {
		end()
	}
	require.Empty(t, wrong, "of %d requests", asked)
	require.Empty(t, h.Wrong())
	t.Logf("%d requests, %d copies, %d messages of streams, bob and carol came and went %d times", asked, copies.Load(),
		h.Messages.Load(), rounds)

	t.Run("gRPC from the client", func(t *testing.T) {
		conn, err := grpc.NewClient("passthrough:///subject.shop:80",
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		defer conn.Close()
		for who, by := range map[string]string{"alice": "alice", "bob": "cluster"} {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-dev", who),
				20*time.Second)
			defer cancel()
			stream, err := testpb.NewTestServiceClient(conn).StreamingInputCall(ctx)
			require.NoError(t, err)
			for range 10 {
				require.NoError(t,
					stream.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: []byte("x")}}))
			}
			m, err := stream.CloseAndRecv()
			require.NoError(t, err)
			require.Equal(t, int32(10*1000+len(by)), m.AggregatedPayloadSize)
		}
	})
}
