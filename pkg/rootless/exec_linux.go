package rootless

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// spaces are the namespaces to enter, in this order: being in the user namespace gives the right to
// enter the others.
var spaces = []struct {
	name string
	flag uintptr
}{{"user", unix.CLONE_NEWUSER}, {"mnt", unix.CLONE_NEWNS}, {"net", unix.CLONE_NEWNET}}

// process is a child that was forked without package os.
type process struct {
	pid     int
	done    chan struct{}
	code    int
	err     error
	signals chan os.Signal
	passing sync.WaitGroup
}

// Exec starts a command in the namespaces of a process, or in those of this process when pid is 0.
// It looks the command up in this process's $PATH, whatever the command's environment. From then on
// this process passes its signals on to the command. The caller calls Wait.
func Exec(pid int, args, environment []string) (Process, error) {
	path, err := find(args[0])
	if err != nil {
		return nil, err
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	plan := &forkPlan{environment: environment}
	if pid != 0 {
		for i, s := range spaces {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, s.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("enter the session's network: %w", err)
			}
			fds = append(fds, fd)
			plan.spaces[i] = uintptr(fd)
		}
		plan.enter = true
	}
	p := &process{done: make(chan struct{}), signals: make(chan os.Signal, 16)}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2} {
		if s != unix.SIGHUP || !signal.Ignored(s) { // under nohup it is ignored, and the command ignores it too
			signal.Notify(p.signals, s)
		}
	}
	started := make(chan error)
	// Wait waits for it, by done.
	go p.run(plan, path, args, started)
	if err := <-started; err != nil {
		signal.Stop(p.signals)
		return nil, err
	}
	p.passing.Go(p.pass)
	return p, nil
}

// run forks and waits on one thread: the kernel ends the command when this thread, its parent,
// ends.
func (p *process) run(plan *forkPlan, path string, args []string, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, err := plan.fork(path, args)
	if err != nil {
		started <- err
		return
	}
	p.pid = pid
	started <- nil
	defer close(p.done)
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			p.code, p.err = 1, fmt.Errorf("wait for %s: %w", args[0], err)
		case status.Signaled():
			p.code = 128 + int(status.Signal())
		default:
			p.code = status.ExitStatus()
		}
		return
	}
}

// pass hands signals on. Signals of the terminal's keys reach the command anyway, because it is in
// the same process group.
func (p *process) pass() {
	for {
		select {
		case <-p.done:
			return
		case s := <-p.signals:
			number, ok := s.(syscall.Signal)
			if !ok || (number == unix.SIGINT || number == unix.SIGQUIT) && foreground() {
				continue
			}
			_ = unix.Kill(p.pid, number)
		}
	}
}

// foreground reports whether the terminal's keys send signals to this process group.
func foreground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func (p *process) Wait() (int, error) {
	<-p.done
	signal.Stop(p.signals)
	p.passing.Wait()
	return p.code, p.err
}

func (p *process) Terminate() {
	select {
	case <-p.done:
	default:
		_ = unix.Kill(p.pid, unix.SIGTERM)
	}
}

// forkPlan is all that the child needs, made before the fork.
type forkPlan struct {
	environment  []string
	enter        bool
	spaces       [3]uintptr
	flags        [3]uintptr
	path, cwd    *byte
	argv, envv   []*byte
	failures     uintptr // a pipe for the failure
	mask, before unix.Sigset_t
	files        unix.Rlimit // the limit of open files
	limit        bool
}

// failure is what the child writes to the pipe: the failed step and its errno.
type failure [2]uint32

const (
	stepEnter = iota + 1
	stepDirectory
	stepExec
)

// fork makes the child. A process may enter a user namespace only while it has one thread, and a Go
// program has more. So the child enters it between fork and exec.
func (f *forkPlan) fork(path string, args []string) (int, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return 0, fmt.Errorf("find the working directory: %w", err)
	}
	for i, s := range spaces {
		f.flags[i] = s.flag
	}
	err = errors.Join(one(&f.path, path), one(&f.cwd, cwd), many(&f.argv, args), many(&f.envv, f.environment))
	if err != nil {
		return 0, &StartError{Name: args[0], Code: ExitNotAllowed, Err: err}
	}
	f.files, f.limit = openFiles()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make a pipe: %w", err)
	}
	defer r.Close()
	f.failures = w.Fd()
	for i := range f.mask.Val {
		f.mask.Val[i] = ^f.mask.Val[i]
	}
	// The child has Go's signal handlers but no Go runtime: no signal may reach it before exec.
	syscall.ForkLock.Lock()
	err = unix.PthreadSigmask(unix.SIG_SETMASK, &f.mask, &f.before)
	var pid uintptr
	var errno syscall.Errno
	if err == nil {
		pid, errno = forkAndEnter(f)
		err = unix.PthreadSigmask(unix.SIG_SETMASK, &f.before, nil)
	}
	syscall.ForkLock.Unlock()
	_ = w.Close()
	if errno != 0 {
		err = errno
	}
	if err != nil {
		return 0, &StartError{Name: args[0], Code: ExitNotAllowed, Err: fmt.Errorf("fork: %w", err)}
	}
	raw, _ := io.ReadAll(r)
	if len(raw) == 0 {
		return int(pid), nil
	}
	_, _ = unix.Wait4(int(pid), nil, 0, nil)
	var failed failure
	copy((*[unsafe.Sizeof(failed)]byte)(unsafe.Pointer(&failed))[:], raw)
	reason := syscall.Errno(failed[1])
	switch failed[0] {
	case stepEnter:
		return 0, fmt.Errorf("enter the session's network: %w", reason)
	case stepDirectory:
		return 0, &StartError{Name: args[0], Code: ExitNotAllowed, Err: fmt.Errorf("enter %s: %w", cwd, reason)}
	}
	return 0, &StartError{Name: args[0], Code: ExitNotAllowed, Err: reason}
}

// openFiles is the limit of open files that this process was started with. Go has raised it for
// itself, and restores it only for children that package os starts. Programs that use select(2)
// break with a higher limit.
func openFiles() (unix.Rlimit, bool) {
	var limit unix.Rlimit
	out, err := exec.Command("/bin/sh", "-c", "ulimit -Sn").Output()
	if err != nil || unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return limit, false
	}
	soft, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || soft > limit.Max {
		return limit, false
	}
	limit.Cur = soft
	return limit, true
}

func one(to **byte, s string) (err error) {
	*to, err = unix.BytePtrFromString(s)
	return err
}

func many(to *[]*byte, all []string) (err error) {
	*to, err = syscall.SlicePtrFromStrings(all)
	return err
}

// forkAndEnter returns in the parent only. The child shares nothing and has one thread. It may make
// system calls and do nothing else: no allocation, no lock, no growth of the stack.
//
//go:norace
//go:nosplit
func forkAndEnter(f *forkPlan) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	step := uint32(stepEnter)
	if f.enter {
		for i := range f.spaces {
			if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, f.spaces[i], f.flags[i], 0); errno != 0 {
				break
			}
		}
	}
	if errno == 0 {
		// This comes after setns, which clears the setting.
		_, _, _ = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0, 0)
		if f.limit {
			_, _, _ = syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE,
				uintptr(unsafe.Pointer(&f.files)), 0, 0, 0)
		}
		step = stepDirectory
		_, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(f.cwd)), 0, 0)
	}
	if errno == 0 {
		step = stepExec
		_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
			uintptr(unsafe.Pointer(&f.before)), 0, 8, 0, 0)
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(f.path)),
			uintptr(unsafe.Pointer(&f.argv[0])), uintptr(unsafe.Pointer(&f.envv[0])))
	}
	var failed failure
	failed[0], failed[1] = step, uint32(errno)
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, f.failures, uintptr(unsafe.Pointer(&failed)), unsafe.Sizeof(failed))
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
