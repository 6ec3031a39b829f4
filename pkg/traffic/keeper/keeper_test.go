//go:build linux

package keeper

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// The test's program is also the agent that it keeps: one that tells its clients its process.
func TestMain(m *testing.M) {
	switch mode := os.Getenv("KEEPER_TEST"); {
	case mode == "fails":
		os.Exit(3)
	case mode != "":
		serve(mode)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func serve(port string) {
	n, _ := strconv.Atoi(port)
	l, err := Listen(uint16(n))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() { <-told; _ = l.Close() }()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(c, os.Getpid())
		_ = c.Close()
	}
}

func free(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// ask returns the process of the agent that answers; 0 when the one that had taken the connection
// was killed. Nobody is refused.
func ask(t *testing.T, port uint16) int {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	require.NoError(t, err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	said, err := io.ReadAll(c)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(said)))
	require.NoError(t, err)
	return pid
}

func TestKilledAgentIsStartedAgain(t *testing.T) {
	other, port := free(t), free(t)
	t.Setenv("KEEPER_TEST", strconv.Itoa(int(port)))
	ended := make(chan error, 1)
	go func() { ended <- Run([]uint16{other, port}, []string{os.Args[0]}, slog.New(slog.DiscardHandler)) }()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 10*time.Second, time.Millisecond)
	for range 3 {
		pid := ask(t, port)
		require.NotZero(t, pid)
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		require.Eventually(t, func() bool { now := ask(t, port); return now != 0 && now != pid }, 10*time.Second,
			time.Millisecond)
	}
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	require.NoError(t, <-ended)
	_, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "nobody holds the socket any more")
}

func TestAgentThatCannotStart(t *testing.T) {
	t.Setenv("KEEPER_TEST", "fails")
	require.ErrorContains(t, Run([]uint16{free(t)}, []string{os.Args[0]}, slog.New(slog.DiscardHandler)),
		"again and again")
	require.ErrorContains(t, Run([]uint16{free(t)}, []string{"/nonexistent"}, slog.New(slog.DiscardHandler)),
		"start the agent")
}

func TestListenWithoutAKeeper(t *testing.T) {
	port := free(t)
	l, err := Listen(port)
	require.NoError(t, err)
	_, err = Listen(port)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.NoError(t, l.Close())
}
