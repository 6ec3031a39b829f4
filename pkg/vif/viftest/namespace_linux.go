package viftest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Service is the address that only the "cluster" has: it is on the loopback of the test's own
// network namespace.
var Service = netip.MustParseAddr("10.99.0.1")

// Isolate runs the test program again inside user and network namespaces of their own, unless it is
// there already. The TUN, the addresses and the routes of the tests are real, need no root, and
// never touch the machine. Call it first in TestMain.
func Isolate() {
	const inside = "DETOUR_TEST_IN_NAMESPACE"
	if os.Getenv(inside) == "" {
		os.Exit(runInNamespaces(inside + "=1"))
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		address := &net.IPNet{IP: Service.AsSlice(), Mask: net.CIDRMask(32, 32)}
		err = netlink.AddrReplace(lo, &netlink.Addr{IPNet: address})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "preparing the namespace:", err)
		os.Exit(1)
	}
}

// runInNamespaces runs this program again, and returns its exit code.
func runInNamespaces(environment string) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), environment)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "starting the tests in a namespace:", err)
		return 1
	}
	return 0
}

// OnLaptop runs f on a thread in the laptop's network namespace. Sockets and interfaces made in f
// belong to that namespace.
func OnLaptop(t *testing.T, f func() error) {
	t.Helper()
	require.NoError(t, InLaptop(f))
}

// laptopNamespace is made for the first caller.
var laptopNamespace = sync.OnceValues(func() (*os.File, error) {
	made := make(chan error)
	var namespace *os.File
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			namespace, err = os.Open("/proc/thread-self/ns/net")
		}
		if lo, lerr := netlink.LinkByName("lo"); err == nil && lerr == nil {
			err = netlink.LinkSetUp(lo)
		}
		made <- err
	}()
	err := <-made
	return namespace, err
})

func InLaptop(f func() error) error {
	namespace, err := laptopNamespace()
	if err != nil {
		return err
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}
