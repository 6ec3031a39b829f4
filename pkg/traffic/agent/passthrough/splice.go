//go:build linux

package passthrough

import "golang.org/x/sys/unix"

const (
	bulkAfter = 2 // full buffers in a row that make a bulk transfer
	pipeSize  = 256 << 10
	pipesMax  = 16 // empty pipes kept for the next bulk transfer
)

// pipe holds pages of a bulk transfer on their way from one socket to the other: the kernel moves them, nobody copies.
type pipe struct {
	r, w int
	have int // bytes in it
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// full says whether s has to take something before its peer may say more.
func (s *socket) full() bool { return len(s.pending) > 0 || s.pipe != nil && s.pipe.have > 0 }

// splice carries what s says to its peer without a copy, for as long as it comes in bulk.
func (l *loop) splice(s *socket) {
	to := s.peer
	if to.pipe == nil && !l.getPipe(to) {
		s.bulk = 0 // no descriptors: copy
		return
	}
	if s == &s.pair.app {
		s.pair.http.answered = true
	}
	for range readsMax {
		n, err := unix.Splice(s.fd, nil, to.pipe.w, nil, pipeSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR: //nolint:errorlint // an errno as it is
			continue
		case err == unix.EAGAIN: //nolint:errorlint // an errno as it is
			s.bulk = 0
			l.putPipe(to)
			return
		case err != nil:
			l.end(s.pair, true)
			return
		case n == 0:
			l.putPipe(to)
			l.ended(s)
			return
		}
		to.pipe.have += int(n)
		if !l.drain(to) {
			return
		}
		if to.full() {
			l.want(to)
			l.want(s)
			return
		}
	}
}

// drain gives s what its pipe holds, as far as it takes it. It says whether the pair lives.
func (l *loop) drain(s *socket) bool {
	for s.pipe != nil && s.pipe.have > 0 {
		n, err := unix.Splice(s.pipe.r, nil, s.fd, nil, s.pipe.have, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR: //nolint:errorlint // an errno as it is
		case err == unix.EAGAIN: //nolint:errorlint // an errno as it is
			return true
		case err != nil:
			l.end(s.pair, true)
			return false
		default:
			s.pipe.have -= int(n)
		}
	}
	return true
}

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
	// A smaller pipe, where the user has many already, does too.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	s.pipe = &pipe{r: fds[0], w: fds[1]}
	return true
}

func (l *loop) putPipe(s *socket) {
	p := s.pipe
	s.pipe = nil
	switch {
	case p == nil:
	case p.have == 0 && len(l.pipes) < pipesMax:
		l.pipes = append(l.pipes, p)
	default:
		p.close()
	}
}
