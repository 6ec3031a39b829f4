package suite

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// echoServer deploys a pod that sends datagrams back, with addresses of both families if the
// cluster has both. It returns the pod's addresses.
func echoServer(t *testing.T) (pods []string) {
	t.Helper()
	manifest := kit.Testdata("echo.yaml")
	kit.Kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "--wait=false", "-f", manifest) })
	kit.WaitForRollout(t, "echo", "deployment/echo")
	return strings.Fields(kit.Query(t, "echo", "pod -l app=echo", "{.items[0].status.podIPs[*].ip}"))
}

// ping reports whether an address answers an echo request.
func ping(t *testing.T, to string, wait time.Duration) bool {
	t.Helper()
	network, protocol, kind := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeEcho)
	if strings.Contains(to, ":") {
		network, protocol, kind = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest
	}
	c, err := icmp.ListenPacket(network, "")
	require.NoError(t, err)
	defer c.Close()
	sent := &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: []byte("are you there?")}
	message, err := (&icmp.Message{Type: kind, Body: sent}).Marshal(nil)
	require.NoError(t, err)
	_, err = c.WriteTo(message, &net.IPAddr{IP: net.ParseIP(to)})
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(wait)))
	for buf := make([]byte, 1500); ; {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return false
		}
		answer, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || from.String() != to ||
			answer.Type != ipv4.ICMPTypeEchoReply && answer.Type != ipv6.ICMPTypeEchoReply {
			continue // the reply to another process
		}
		require.Equal(t, sent, answer.Body)
		return true
	}
}

// echoes reports whether a datagram from a new port comes back.
func echoes(t *testing.T, address string) bool {
	t.Helper()
	c, err := net.Dial("udp", address)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(2*time.Second)))
	if _, err := c.Write([]byte("are you there?")); err != nil {
		return false
	}
	_, err = c.Read(make([]byte, 64))
	return err == nil
}

func TestDatagramsAndPings(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine))
	pods := echoServer(t)
	kit.Connect(t)
	service := kit.ClusterIP(t, "echo", "echo")
	// A datagram that is sent before the node's kube-proxy knows the service is lost, and so are
	// all later ones from the same port: conntrack remembers the destination.
	kit.Eventually(t, func() bool { return echoes(t, net.JoinHostPort(service, "7")) })

	t.Run("10000 datagrams of QUIC's size, and none is lost", func(t *testing.T) {
		c, err := net.Dial("udp", net.JoinHostPort(service, "7"))
		require.NoError(t, err)
		defer c.Close()
		const count, size, window = 10_000, 1200, 32
		room := make(chan struct{}, window)
		var receiving sync.WaitGroup
		receiving.Go(func() {
			defer c.Close() // frees the sender
			seen := make([]bool, count)
			buf := make([]byte, size+1)
			for n := range count {
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				got, err := c.Read(buf)
				if !assert.NoError(t, err, "after %d", n) || !assert.Equal(t, size, got) {
					return
				}
				number := binary.BigEndian.Uint32(buf)
				assert.False(t, seen[number], "%d came twice", number)
				seen[number] = true
				<-room
			}
		})
		message := make([]byte, size)
		for n := range count {
			select {
			case room <- struct{}{}:
			case <-time.After(20 * time.Second):
				t.Error("the answers stopped")
			}
			binary.BigEndian.PutUint32(message, uint32(n))
			if _, err := c.Write(message); err != nil {
				break
			}
		}
		receiving.Wait()
	})

	t.Run("large ones, by name and to the pod", func(t *testing.T) {
		for _, address := range []string{"echo.echo:7", net.JoinHostPort(pods[0], "9000")} {
			c, err := net.Dial("udp", address)
			require.NoError(t, err)
			defer c.Close()
			for _, size := range []int{1, 1452, 9000, 60000} {
				message := bytes.Repeat([]byte{byte(size)}, size)
				_, err = c.Write(message)
				require.NoError(t, err)
				require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
				buf := make([]byte, 64<<10)
				n, err := c.Read(buf)
				require.NoError(t, err, "%s, %d bytes", address, size)
				require.True(t, bytes.Equal(message, buf[:n]))
			}
		}
	})

	t.Run("who answers a ping is there", func(t *testing.T) {
		for _, pod := range pods {
			require.True(t, ping(t, pod, 10*time.Second), pod)
		}
		require.False(t, ping(t, "10.244.0.254", 2*time.Second), "nobody's")
	})

	t.Run("IPv6", func(t *testing.T) {
		if len(pods) < 2 {
			t.Skip("this cluster has only one family")
		}
		m, err := kit.AskDNS(kit.Resolver(t), "udp", kit.Question{Name: "echo.echo.", Type: dns.TypeAAAA})
		require.NoError(t, err)
		require.Len(t, m.Answer, 1)
		service := m.Answer[0].(*dns.AAAA).AAAA.String()
		for _, url := range []string{"http://[" + service + "]/", "http://[" + pods[1] + "]:8080/"} {
			out, err := exec.Command("curl", "-sS", "--max-time", "10", url).CombinedOutput()
			require.NoError(t, err, string(out))
			require.Contains(t, string(out), "a small answer")
		}
		out, err := exec.Command("curl", "-6", "-sS", "--max-time", "10", "http://echo.echo/").CombinedOutput()
		require.NoError(t, err, "%s", out)
		c, err := net.Dial("udp", net.JoinHostPort(service, "7"))
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		buf := make([]byte, 10)
		n, err := c.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "hello", string(buf[:n]))
	})
}
