package laptop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f in the laptop's network namespace, on a thread that nothing else runs on meanwhile.
// Sockets that f opens stay there for good. Goroutines that f starts, and with them name lookups
// and http.Transport, run outside; files are the machine's.
func (l *Laptop) Do(f func() error) (err error) {
	runtime.LockOSThread()
	outside, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("find the machine's network: %w", err)
	}
	defer outside.Close()
	inside, err := os.Open(l.netns())
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("find the network of %s: %w", l.Name(), err)
	}
	defer inside.Close()
	if err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network of %s: %w", l.Name(), err)
	}
	defer func() {
		if back := unix.Setns(int(outside.Fd()), unix.CLONE_NEWNET); back != nil {
			// The thread stays locked, and ends with the goroutine: nothing else may run on it.
			err = errors.Join(err, fmt.Errorf("leave the network of %s: %w", l.Name(), back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// DialContext connects from the laptop; it is made for http.Transport. The address is an IP
// address, see Do.
func (l *Laptop) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = l.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
