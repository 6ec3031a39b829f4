package suite

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

func TestLaptopReachesTheCluster(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine, kit.Catalog, kit.Target))
	kit.DeployTarget(t)
	kit.Connect(t)
	ip := kit.Query(t, "shop", "service catalog", "{.spec.clusterIP}")
	pod := kit.Query(t, "shop", "pod -l app=catalog", "{.items[0].status.podIP}")
	for _, url := range []string{
		"http://" + ip + "/", "http://" + pod + ":8080/", "http://catalog/",
		"http://catalog.shop/", "http://catalog.shop.svc/", "http://catalog.shop.svc.cluster.local/",
	} {
		require.Equal(t, "cluster", kit.Edition(t, url), url)
	}
	for _, url := range []string{
		"http://target.other/", "http://target.other.svc/",
		"http://target.other.svc.cluster.local/",
	} {
		page, err := kit.Get(kit.NewConnections(), url)
		require.NoError(t, err)
		require.Contains(t, page, "a small answer", url)
	}

	t.Run("other programs resolve and connect too", func(t *testing.T) {
		out, err := exec.Command("curl", "-sS", "--max-time", "10", "http://target.other/").CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "a small answer")
	})

	t.Run("a refused port is refused at once", func(t *testing.T) {
		_, err := net.DialTimeout("tcp", net.JoinHostPort(pod, "9"), 30*time.Second)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})

	t.Run("100 MB arrive whole, up and down", func(t *testing.T) {
		const size = 100_000_000
		hash := sha256.New()
		noise := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), hash)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://target.other/sum", noise)
		require.NoError(t, err)
		resp, err := kit.NewConnections().Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		sum, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%x", hash.Sum(nil)), string(sum), "up")

		resp, err = kit.NewConnections().Get(fmt.Sprintf("http://target.other/noise/%d", size))
		require.NoError(t, err)
		defer resp.Body.Close()
		got := sha256.New()
		n, err := io.Copy(got, resp.Body)
		require.NoError(t, err)
		require.EqualValues(t, size, n)
		require.Equal(t, hash.Sum(nil), got.Sum(nil), "down")
	})

	t.Run("500 connections at once", func(t *testing.T) {
		target := kit.Query(t, "other", "service target", "{.spec.clusterIP}") + ":80"
		var opened, asked sync.WaitGroup
		opened.Add(500)
		failures := make(chan error, 500)
		for range 500 {
			asked.Go(func() {
				c, err := net.DialTimeout("tcp", target, 20*time.Second)
				opened.Done()
				if err != nil {
					failures <- err
					return
				}
				defer c.Close()
				opened.Wait() // all connections are open before the first one sends anything
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n")
				answer, err := io.ReadAll(c)
				if err == nil && len(answer) == 0 {
					err = io.ErrUnexpectedEOF
				}
				if err != nil {
					failures <- err
				}
			})
		}
		asked.Wait()
		require.Empty(t, failures)
	})
}

// Routes, addresses and resolver are the same before and after a session, however it ends.
func TestLaptopIsPutBack(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine))
	state := func() string {
		var all string
		for _, args := range [][]string{{"route", "show", "table", "all"}, {"-brief", "address"}, {"rule"}} {
			out, err := exec.Command("ip", args...).Output()
			require.NoError(t, err)
			all += string(out)
		}
		resolver, err := os.ReadFile("/etc/resolv.conf")
		require.NoError(t, err)
		return all + string(resolver)
	}
	before := state()
	t.Cleanup(func() { _, _ = kit.Run("detour", "quit") }) // if one of them fails while it is connected
	for name, end := range map[string]func(){
		"after quit": func() { kit.Detour(t, "quit") },
		"after Ctrl-C": func() {
			require.NoError(t, syscall.Kill(kit.DaemonPID(t),
				syscall.SIGINT))
			kit.WaitForDaemonExit(t)
		},
		"after kill -9": func() {
			require.NoError(t, syscall.Kill(kit.DaemonPID(t),
				syscall.SIGKILL))
			kit.Detour(t, "status")
		},
		"after an interruption": nil,
	} {
		t.Run(name, func(t *testing.T) {
			if end == nil {
				cmd := exec.Command("detour", "connect", "-n", "shop")
				require.NoError(t, cmd.Start())
				time.Sleep(150 * time.Millisecond) // in the middle of connecting, unless that is quicker
				_ = cmd.Process.Signal(os.Interrupt)
				_ = cmd.Wait()
				kit.Detour(t, "quit")
			} else {
				kit.Detour(t, "connect", "-n", "shop")
				require.NotEqual(t, before, state())
				end()
			}
			// The kernel removes the interface of a killed daemon a moment later.
			kit.Eventually(t, func() bool { return state() == before })
			require.Equal(t, before, state())
		})
	}
}
