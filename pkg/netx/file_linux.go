package netx

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// File is a file of the kernel that can be polled, such as a TUN device. Its system calls are
// direct, as those of Conn.
type File struct {
	raw     syscall.RawConn
	in, out transfer
}

// NewFile returns a File that reads and writes f, which must be non-blocking. f stays the caller's,
// who closes it.
func NewFile(f *os.File) (*File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", f.Name(), err)
	}
	// A call that blocks would keep a processor of Go's scheduler.
	var flags int
	var failed error
	if err := raw.Control(func(fd uintptr) { flags, failed = unix.FcntlInt(fd, unix.F_GETFL, 0) }); err != nil {
		return nil, fmt.Errorf("use %s: %w", f.Name(), err)
	}
	if failed != nil {
		return nil, fmt.Errorf("find out whether %s blocks: %w", f.Name(), failed)
	}
	if flags&unix.O_NONBLOCK == 0 {
		return nil, fmt.Errorf("%s is in blocking mode", f.Name())
	}
	s := &File{raw: raw}
	s.in.try, s.out.try = s.in.readFile, s.out.writeFile
	return s, nil
}

func (t *transfer) readFile(fd uintptr) bool  { return t.call(syscall.SYS_READ, fd, 0) }
func (t *transfer) writeFile(fd uintptr) bool { return t.call(syscall.SYS_WRITE, fd, 0) }

// Read reads once; from a TUN device that is one packet.
func (f *File) Read(b []byte) (int, error) { return result(f.in.move(f.raw.Read, f.in.try, b)) }

// Write writes once.
func (f *File) Write(b []byte) (int, error) { return result(f.out.move(f.raw.Write, f.out.try, b)) }

func result(n int, errno syscall.Errno, err error) (int, error) {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, err
	case err != nil: // package os has no other error
		return 0, fmt.Errorf("%w: %w", os.ErrClosed, err)
	case errno != 0:
		return 0, errno
	}
	return n, nil
}
