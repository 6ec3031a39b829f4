package vif_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/viftest"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

func TestLaptopReachesTheCluster(t *testing.T) {
	hub, laptop, key := viftest.Pair(t)
	address := viftest.Echo(t)

	t.Run("bytes arrive whole, with half-close", func(t *testing.T) {
		c, err := viftest.Dial("tcp", address.String())
		require.NoError(t, err)
		defer c.Close()
		sent := make([]byte, 20<<20)
		_, _ = rand.Read(sent)
		var writing sync.WaitGroup
		writing.Go(func() {
			_, err := c.Write(sent)
			assert.NoError(t, err)
			assert.NoError(t, c.(*net.TCPConn).CloseWrite())
		})
		hash := sha256.New()
		n, err := io.Copy(hash, c)
		writing.Wait()
		require.NoError(t, err)
		require.EqualValues(t, len(sent), n)
		want := sha256.Sum256(sent)
		require.Equal(t, want[:], hash.Sum(nil))
	})

	t.Run("many connections at once", func(t *testing.T) {
		var all sync.WaitGroup
		failures := make(chan error, 200)
		for n := range 200 {
			all.Go(func() {
				c, err := viftest.Dial("tcp", address.String())
				if err != nil {
					failures <- err
					return
				}
				defer c.Close()
				message := fmt.Appendf(nil, "connection %d", n)
				got := make([]byte, len(message))
				if _, err := c.Write(message); err != nil {
					failures <- err
				} else if _, err := io.ReadFull(c, got); err != nil {
					failures <- err
				} else if !bytes.Equal(got, message) {
					failures <- fmt.Errorf("sent %q, got %q", message, got)
				}
			})
		}
		all.Wait()
		close(failures)
		for err := range failures {
			t.Error(err)
		}
	})

	t.Run("a refused port is refused at once", func(t *testing.T) {
		_, err := viftest.Dial("tcp", netip.AddrPortFrom(viftest.Service, 1).String())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})

	t.Run("a destination that the hub does not allow is refused", func(t *testing.T) {
		viftest.OnLaptop(t, func() error {
			rtt, err := vif.RTT(t.Context(), new(net.Dialer).DialContext, viftest.HubAddress)
			require.Positive(t, rtt)
			return err
		})
	})

	t.Run("datagrams", func(t *testing.T) {
		server, err := net.ListenPacket("udp", netip.AddrPortFrom(viftest.Service, 0).String())
		require.NoError(t, err)
		defer server.Close()
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(buf[:n], from)
			}
		}()
		c, err := viftest.Dial("udp", server.LocalAddr().String())
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(viftest.Timeout)))
		for n := range 100 {
			message := fmt.Sprintf("datagram %d", n)
			_, err = c.Write([]byte(message))
			require.NoError(t, err)
			buf := make([]byte, 100)
			got, err := c.Read(buf)
			require.NoError(t, err)
			require.Equal(t, message, string(buf[:got]))
		}
	})

	t.Run("it is seen as connected", func(t *testing.T) {
		require.True(t, hub.Connected(key, 3*time.Second))
		require.True(t, laptop.Alive())
	})
}

func TestClusterReachesOnlyTheInboundPort(t *testing.T) {
	hub, _, _ := viftest.Pair(t)
	listen := func(port int) net.Listener {
		var l net.Listener
		viftest.OnLaptop(t, func() (err error) {
			l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port))
			return err
		})
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	open, other := listen(viftest.InboundPort), listen(8080)

	go func() {
		c, err := open.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), viftest.Timeout)
	defer cancel()
	c, err := hub.Dial(ctx, netip.AddrPortFrom(viftest.LaptopAddress, viftest.InboundPort))
	require.NoError(t, err)
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
	require.NoError(t, c.Close())

	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = hub.Dial(short, netip.AddrPortFrom(viftest.LaptopAddress, uint16(other.Addr().(*net.TCPAddr).Port)))
	require.Error(t, err, "a port that is not the inbound port must stay closed to the cluster")
}

// The laptop can tell a client's reset in the cluster from an orderly end.
func TestResetReachesTheLaptop(t *testing.T) {
	hub, _, _ := viftest.Pair(t)
	var l net.Listener
	viftest.OnLaptop(t, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", viftest.InboundPort))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.ReadAll(c)
			_ = c.Close()
		}
		ended <- err
	}()
	c, err := hub.Dial(t.Context(), netip.AddrPortFrom(viftest.LaptopAddress, viftest.InboundPort))
	require.NoError(t, err)
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	c.(interface{ Abort() }).Abort()
	require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	require.NoError(t, c.Close())
}

// Clients in the cluster that wait for a laptop which is gone get a reset. The laptop's own
// connections stay for when it comes back.
func TestResetRelayedLeavesTheLaptopsOwnFlows(t *testing.T) {
	hub, _, key := viftest.Pair(t)
	own, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer own.Close()
	viftest.RequireEcho(t, own)
	var l net.Listener
	viftest.OnLaptop(t, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", viftest.InboundPort))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	relayed, err := hub.Dial(t.Context(), netip.AddrPortFrom(viftest.LaptopAddress, viftest.InboundPort))
	require.NoError(t, err)
	defer relayed.Close()

	hub.ResetRelayed(key)
	require.NoError(t, relayed.SetReadDeadline(time.Now().Add(viftest.Timeout)))
	_, err = relayed.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	viftest.RequireEcho(t, own)
}

func TestConnectionsSurviveAStreamThatIsCut(t *testing.T) {
	_, _, _, cut := viftest.PairCuttable(t)
	c, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer c.Close()
	for n := range 3 {
		if n > 0 {
			cut()
		}
		viftest.RequireEcho(t, c)
	}
}

func TestUpWithAnEndedContextLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	private, err := wgkey.NewPrivate()
	require.NoError(t, err)
	const name = "ended0"
	viftest.OnLaptop(t, func() error {
		laptop, err := vif.Up(ctx, vif.Config{
			PrivateKey: private,
			PeerKey:    private.Public(),
			Addresses:  []netip.Addr{viftest.LaptopAddress},
			Name:       name,
			Dial:       func(ctx context.Context) (vif.Stream, error) { <-ctx.Done(); return vif.Stream{}, ctx.Err() },
		})
		assert.ErrorIs(t, err, context.Canceled)
		assert.Nil(t, laptop)
		_, err = net.InterfaceByName(name)
		assert.Error(t, err, "the interface is gone")
		return nil
	})
}

// Without the class mark all flows share the stream, and the log says so.
func TestWithoutClassMarkThereIsNoExpressStream(t *testing.T) {
	t.Cleanup(vif.SetClassMarkCheck(func() error { return errors.New("another layout") }))
	var log safeBuffer
	c := vif.Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
	hub, _, _, _ := viftest.PairWith(t, c)
	require.Contains(t, log.String(), "express streams are off")
	conn, err := viftest.Dial("tcp", viftest.Echo(t).String())
	require.NoError(t, err)
	defer conn.Close()
	require.Never(
		t,
		func() bool { open, _ := hub.Paths().Streams(); return open > 1 },
		2*time.Second,
		50*time.Millisecond,
	)
	viftest.RequireEcho(t, conn)
}

// safeBuffer is a buffer for several goroutines.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
