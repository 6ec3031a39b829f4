package netx

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Batches of datagrams.
//
// package net receives one datagram for each system call, tells the scheduler about each call, and
// allocates for each address. Receiver takes several datagrams with one recvmmsg, and Sender sends
// several with one sendmsg where the control data asks for segmentation (UDP_SEGMENT).
//
// Gain: part of the request over UDP that cost 438 -> 310 µs (see Conn). Cost: unsafe, and copies
// of the kernel's structs. Measured in the laboratory (docs/design/performance-log.md);
// BenchmarkDatagrams compares it with package net.

// Sender sends datagrams. Its methods may be called concurrently.
type Sender struct {
	conn *net.UDPConn
	raw  syscall.RawConn

	// mu guards the fields below.
	mu     sync.Mutex
	header unix.Msghdr
	iov    unix.Iovec
	name   address
	errno  syscall.Errno
	try    func(fd uintptr) (done bool)
}

// address is a sockaddr_in or a sockaddr_in6.
type address [unix.SizeofSockaddrInet6]byte

// NewSender returns a Sender for a socket, which stays the caller's.
func NewSender(c *net.UDPConn) *Sender {
	raw, _ := c.SyscallConn() // fails for nil only
	s := &Sender{conn: c, raw: raw}
	s.try = s.send
	return s
}

func (s *Sender) send(fd uintptr) bool {
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.header)), unix.MSG_DONTWAIT)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		s.errno = errno
		return true
	}
}

// Send sends b to an address. The control data may say that b is several datagrams.
func (s *Sender) Send(b, control []byte, to netip.AddrPort) error {
	if to.Addr().Zone() != "" {
		_, _, err := s.conn.WriteMsgUDPAddrPort(b, control, to)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.header = unix.Msghdr{
		Name: &s.name[0], Namelen: s.name.set(to), Iov: &s.iov, Control: unsafe.SliceData(control),
	}
	s.header.SetIovlen(1)
	s.header.SetControllen(len(control))
	s.iov.Base = unsafe.SliceData(b)
	s.iov.SetLen(len(b))
	err := s.raw.Write(s.try)
	if err == nil && s.errno != 0 {
		err = s.errno
	}
	s.header, s.iov = unix.Msghdr{}, unix.Iovec{} // keep nothing alive
	return err
}

// set stores an address, and returns the length of the sockaddr.
func (a *address) set(to netip.AddrPort) uint32 {
	clear(a[:])
	binary.BigEndian.PutUint16(a[2:], to.Port())
	if ip := to.Addr(); !ip.Is4() {
		binary.NativeEndian.PutUint16(a[:], unix.AF_INET6)
		as16 := ip.As16()
		copy(a[8:], as16[:])
		return unix.SizeofSockaddrInet6
	}
	binary.NativeEndian.PutUint16(a[:], unix.AF_INET)
	as4 := to.Addr().As4()
	copy(a[4:], as4[:])
	return unix.SizeofSockaddrInet4
}

func (a *address) get() netip.AddrPort {
	port := binary.BigEndian.Uint16(a[2:])
	if binary.NativeEndian.Uint16(a[:]) == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), port)
	}
	ip := netip.AddrFrom16([16]byte(a[8:24]))
	if scope := binary.NativeEndian.Uint32(a[24:]); scope != 0 {
		ip = ip.WithZone(strconv.Itoa(int(scope)))
	}
	return netip.AddrPortFrom(ip.Unmap(), port)
}

// Receiver receives several datagrams with one system call. It is for one goroutine.
type Receiver struct {
	raw      syscall.RawConn
	buffers  []receiveBuffer
	messages []message // one for each buffer
	n        int
	errno    syscall.Errno
	try      func(fd uintptr) (done bool)
}

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	n      uint32
}

type receiveBuffer struct {
	data, control []byte
	iov           unix.Iovec
	from          address
}

// Datagram is a received datagram with its control data. Both are valid until the next call to
// Receive.
type Datagram struct {
	Data, Control []byte
	From          netip.AddrPort
}

// NewReceiver returns a Receiver for a socket, which stays the caller's. It receives up to count
// datagrams at once, each with up to data bytes, and control bytes of control data.
func NewReceiver(c *net.UDPConn, count, data, control int) *Receiver {
	raw, _ := c.SyscallConn() // fails for nil only
	r := &Receiver{raw: raw, buffers: make([]receiveBuffer, count), messages: make([]message, count)}
	for i := range r.buffers {
		b := &r.buffers[i]
		b.data, b.control = make([]byte, data), make([]byte, control)
		b.iov.Base = &b.data[0]
		b.iov.SetLen(data)
		h := &r.messages[i].header
		h.Name, h.Iov, h.Control = &b.from[0], &b.iov, &b.control[0]
		h.SetIovlen(1)
	}
	r.try = r.receive
	return r
}

func (r *Receiver) receive(fd uintptr) bool {
	for i := range r.messages {
		h := &r.messages[i].header
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(len(r.buffers[i].control))
	}
	for {
		n, _, errno := syscall.RawSyscall6(
			unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.messages[0])), uintptr(len(r.messages)),
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.n, r.errno = int(n), errno
		return true
	}
}

// Receive waits for datagrams and appends them to all. The next call overwrites their bytes.
func (r *Receiver) Receive(all []Datagram) ([]Datagram, error) {
	if err := r.raw.Read(r.try); err != nil {
		return all, err
	}
	if r.errno != 0 {
		return all, r.errno
	}
	for i := range r.n {
		m, b := &r.messages[i], &r.buffers[i]
		all = append(all, Datagram{Data: b.data[:m.n], Control: b.control[:m.header.Controllen], From: b.from.get()})
	}
	return all, nil
}
