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

// direct is what Read and Write need.
type direct struct {
	raw     syscall.RawConn
	in, out transfer
	some    func(fd uintptr) bool
	await   func(fd uintptr) bool
	looked  bool // await has, this time
}

// transfer is one direction. What tries is made once, because it would be allocated for each call.
type transfer struct {
	mu    sync.Mutex // held by whoever reads or writes
	b     []byte
	n     int
	errno syscall.Errno
	try   func(fd uintptr) (done bool)
}

func newConn(c *net.TCPConn) net.Conn {
	raw, err := c.SyscallConn()
	if err != nil {
		return c // it is closed
	}
	s := &Conn{TCPConn: c, direct: direct{raw: raw}}
	s.in.try, s.out.try, s.some, s.await = s.in.receive, s.out.send, s.out.sendSome, s.hasSomething
	return s
}

func (t *transfer) receive(fd uintptr) bool {
	return t.call(syscall.SYS_RECVFROM, fd, syscall.MSG_DONTWAIT)
}

// call makes one call that moves bytes. The kernel does not look at flags where it knows none.
func (t *transfer) call(trap, fd, flags uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.b))), uintptr(len(t.b)), flags, 0, 0)
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
	for len(t.b) > t.n {
		b := t.b[t.n:]
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
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

// sendSome sends what the socket takes now.
func (t *transfer) sendSome(fd uintptr) bool {
	t.send(fd)
	return true
}

// move moves b, waiting for the socket where it has to.
func (t *transfer) move(wait func(func(uintptr) bool) error, b []byte) (int, syscall.Errno, error) {
	return t.moveBy(wait, t.try, b)
}

func (t *transfer) moveBy(wait func(func(uintptr) bool) error, try func(uintptr) bool, b []byte) (int, syscall.Errno, error) {
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
	n, errno, err := c.in.move(c.raw.Read, b)
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, c.failed("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// WaitReadable waits until there is something to read, an end included. Who reads only then needs no buffer while nothing comes.
func (c *Conn) WaitReadable() error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.looked = false
	return c.raw.Read(c.await)
}

// hasSomething says whether there is something to read. Once woken it need not look.
func (c *Conn) hasSomething(fd uintptr) bool {
	if c.looked {
		return true
	}
	c.looked = true
	var b [1]byte
	_, err := Peek(fd, b[:])
	return !errors.Is(err, syscall.EAGAIN)
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	n, errno, err := c.out.move(c.raw.Write, b)
	if err == nil && errno != 0 {
		err = c.failed("write", errno)
	}
	return n, err
}

// TryWrite writes as much as the socket takes without waiting. It is not for use beside Write.
func (c *Conn) TryWrite(b []byte) (int, error) {
	n, errno, err := c.out.moveBy(c.raw.Write, c.some, b)
	if err == nil && errno != 0 {
		err = c.failed("write", errno)
	}
	return n, err
}

func (c *Conn) failed(what string, errno syscall.Errno) error {
	return &net.OpError{Op: what, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(what, errno)}
}

// Peek looks at what a socket has to say, and takes and waits for nothing.
func Peek(fd uintptr, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
