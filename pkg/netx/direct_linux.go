package netx

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// direct is the state that Conn needs on Linux.
type direct struct {
	raw      syscall.RawConn
	in, out  transfer
	trySend  func(fd uintptr) (done bool)
	tryWait  func(fd uintptr) (done bool)
	awakened bool // tryWait has already looked once in this call
}

// transfer is one direction of a connection.
type transfer struct {
	// mu guards the fields below.
	mu    sync.Mutex
	b     []byte
	n     int
	errno syscall.Errno
	try   func(fd uintptr) (done bool) // made once, because each call would allocate it
}

func newConn(c *net.TCPConn) net.Conn {
	raw, err := c.SyscallConn()
	if err != nil {
		return c // it is closed
	}
	s := &Conn{TCPConn: c, direct: direct{raw: raw}}
	s.in.try, s.out.try, s.trySend, s.tryWait = s.in.receive, s.out.send, s.out.sendAvailable, s.waitReadable
	return s
}

func (t *transfer) receive(fd uintptr) bool {
	return t.call(syscall.SYS_RECVFROM, fd, syscall.MSG_DONTWAIT)
}

// call makes one system call that moves bytes. The kernel ignores flags for a call that has none.
func (t *transfer) call(trap, fd, flags uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall6(
			trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.b))), uintptr(len(t.b)), flags, 0, 0)
		switch errno {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		}
		t.n, t.errno = int(n), errno
		return true
	}
}

func (t *transfer) send(fd uintptr) bool {
	const flags = syscall.MSG_DONTWAIT | syscall.MSG_NOSIGNAL
	for len(t.b) > t.n {
		b := t.b[t.n:]
		n, _, errno := syscall.RawSyscall6(
			syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		switch errno {
		case 0:
			t.n += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
	return true
}

// sendAvailable sends what the socket takes now.
func (t *transfer) sendAvailable(fd uintptr) bool {
	t.send(fd)
	return true
}

// move moves b by try, waiting for the socket where it has to.
func (t *transfer) move(
	wait func(func(uintptr) bool) error, try func(uintptr) bool, b []byte,
) (int, syscall.Errno, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b, t.n, t.errno = b, 0, 0
	err := wait(try)
	t.b = nil
	return t.n, t.errno, err
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, errno, err := c.in.move(c.raw.Read, c.in.try, b)
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, c.opError("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// WaitReadable waits until a Read would return at once, with bytes, the end or an error. A caller
// that reads only then needs no buffer while it waits.
func (c *Conn) WaitReadable() error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.awakened = false
	return c.raw.Read(c.tryWait)
}

// waitReadable reports whether there is something to read. The poller calls it again only when
// there is.
func (c *Conn) waitReadable(fd uintptr) bool {
	if c.awakened {
		return true
	}
	c.awakened = true
	var b [1]byte
	_, err := Peek(fd, b[:])
	return !errors.Is(err, syscall.EAGAIN)
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) { return c.write(c.out.try, b) }

// TryWrite writes as much as the socket takes without waiting, and returns how much that was. It
// must not be called at the same time as Write.
func (c *Conn) TryWrite(b []byte) (int, error) { return c.write(c.trySend, b) }

func (c *Conn) write(try func(uintptr) bool, b []byte) (int, error) {
	n, errno, err := c.out.move(c.raw.Write, try, b)
	if err == nil && errno != 0 {
		err = c.opError("write", errno)
	}
	return n, err
}

func (c *Conn) opError(op string, errno syscall.Errno) error {
	return &net.OpError{
		Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno),
	}
}

// Peek copies bytes that a socket has received to b, and neither removes them nor waits for them.
func Peek(fd uintptr, b []byte) (int, error) {
	const flags = syscall.MSG_PEEK | syscall.MSG_DONTWAIT
	n, _, errno := syscall.RawSyscall6(
		syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
