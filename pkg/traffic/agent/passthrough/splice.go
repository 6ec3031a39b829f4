//go:build linux

package passthrough

import "golang.org/x/sys/unix"

// Bulk transfers go through pipes by splice(2): the kernel moves pages, and nobody copies bytes.
//
// Gain: bulk over loopback 0.43 -> 0.58 of the plain throughput. Cost: one pipe, which is two
// descriptors and up to pipeSize bytes, for each direction of a bulk transfer. The figures are from
// docs/design/performance-log.md. BenchmarkSplice compares splice(2) with copying in one process.
// The gain does not show there: on a busy machine with 2 processors the copy took less processor
// time.
const (
	bulkAfter = 2 // consecutive full reads that begin a bulk transfer
	pipeSize  = 256 << 10
	pipesMax  = 16 // empty pipes kept for the next bulk transfers
)

// pipe holds the pages of a bulk transfer on their way from one socket to the other.
type pipe struct {
	r, w     int
	buffered int // bytes in it
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// splice passes the bytes from s to its peer without a copy, until s has no more for the moment.
func (l *loop) splice(s *socket) {
	to := s.peer
	if to.pipe == nil && !l.getPipe(to) {
		s.fullReads = 0 // no descriptors: copy
		return
	}
	if s == &s.pair.app {
		s.pair.http.appSent = true
	}
	for range readsMax {
		n, err := unix.Splice(s.fd, nil, to.pipe.w, nil, pipeSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR: //nolint:errorlint // an errno as it is
			continue
		case err == unix.EAGAIN: //nolint:errorlint // an errno as it is
			s.fullReads = 0
			l.putPipe(to)
			return
		case err != nil:
			l.closePair(s.pair, true)
			return
		case n == 0:
			l.putPipe(to)
			l.onEOF(s)
			return
		}
		to.pipe.buffered += int(n)
		if !l.drain(to) {
			return
		}
		if to.hasBacklog() {
			l.updateInterest(to)
			l.updateInterest(s)
			return
		}
	}
}

// drain moves the bytes in the pipe of s to s, as far as s has room. It reports whether the pair is
// still open.
func (l *loop) drain(s *socket) bool {
	for s.pipe != nil && s.pipe.buffered > 0 {
		n, err := unix.Splice(s.pipe.r, nil, s.fd, nil, s.pipe.buffered, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR: //nolint:errorlint // an errno as it is
		case err == unix.EAGAIN: //nolint:errorlint // an errno as it is
			return true
		case err != nil:
			l.closePair(s.pair, true)
			return false
		default:
			s.pipe.buffered -= int(n)
		}
	}
	return true
}

// getPipe gives s an empty pipe. It reports false if there is no descriptor for one.
func (l *loop) getPipe(s *socket) bool {
	if n := len(l.pipes); n > 0 {
		s.pipe = l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return true
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return false
	}
	// The kernel refuses the size if the user has many pipes. A smaller pipe works too.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	s.pipe = &pipe{r: fds[0], w: fds[1]}
	return true
}

// putPipe takes the pipe of s, if it has one. It keeps the pipe for another transfer, or closes it.
func (l *loop) putPipe(s *socket) {
	p := s.pipe
	s.pipe = nil
	switch {
	case p == nil:
	case p.buffered == 0 && len(l.pipes) < pipesMax:
		l.pipes = append(l.pipes, p)
	default:
		p.close()
	}
}
