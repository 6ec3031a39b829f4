//go:build linux

// Package keeper keeps a pod's traffic-agent running. The keeper is a small process that holds the
// listening sockets, starts the agent with them, and starts it again when it dies. A killed agent
// costs the connections that go through it at that moment. New connections wait at the sockets for
// the next agent, and the kubelet's probes see no change. Run is the keeper; the agent calls
// Listen.
package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// listenersEnv lists the ports of the sockets that the agent inherits, from descriptor 3 on.
	listenersEnv = "DETOUR_LISTENERS"
	// The keeper does not restart an agent that has ended within shortLife maxFailures times in a
	// row, so that the kubelet sees the failure.
	shortLife   = time.Second
	maxFailures = 5
	pause       = 50 * time.Millisecond // after an agent that ended within shortLife
)

// Run listens on ports and runs command until SIGTERM or SIGINT, which it passes on to command.
func Run(ports []uint16, command []string, log *slog.Logger) error {
	// Pdeathsig kills the agent when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	files, err := listen(ports)
	defer func() { closeAll(files) }()
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)
	for failures := 0; ; {
		started := time.Now()
		agent := exec.Command(command[0], command[1:]...)
		agent.Stdout, agent.Stderr, agent.ExtraFiles = os.Stdout, os.Stderr, files
		agent.Env = append(os.Environ(), listenersEnv+"="+join(ports))
		agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := agent.Start(); err != nil {
			return fmt.Errorf("start the agent: %w", err)
		}
		ended := make(chan error, 1)
		go func() { ended <- agent.Wait() }() // ends with the agent, which Run waits for or signals
		select {
		case s := <-signals:
			// The agent still accepts the connections that wait. Later ones must not wait in vain.
			closeAll(files)
			files = nil
			if err := agent.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return fmt.Errorf("tell the agent to end: %w", err)
			}
			return <-ended
		case err = <-ended:
		}
		if failures++; time.Since(started) > shortLife {
			failures = 0
		}
		if failures >= maxFailures {
			return fmt.Errorf("the agent ends again and again: %w", err)
		}
		log.Warn("the agent has ended, starting it again", "err", err)
		if failures > 0 {
			time.Sleep(pause)
		}
	}
}

func listen(ports []uint16) ([]*os.File, error) {
	var files []*os.File
	for _, p := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(p))))
		if err != nil {
			return files, fmt.Errorf("listen for the agent: %w", err)
		}
		f, err := l.(*net.TCPListener).File()
		_ = l.Close() // f is the same socket
		if err != nil {
			return files, fmt.Errorf("get the socket of a listener: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func join(ports []uint16) string {
	var texts []string
	for _, p := range ports {
		texts = append(texts, strconv.Itoa(int(p)))
	}
	return strings.Join(texts, ",")
}

// Listen returns the keeper's listener of a port, or a new listener when there is no keeper. The
// caller owns it.
func Listen(port uint16) (net.Listener, error) {
	for i, text := range strings.Split(os.Getenv(listenersEnv), ",") {
		if text != strconv.Itoa(int(port)) {
			continue
		}
		f := os.NewFile(uintptr(3+i), "listener")
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("take over the listener of port %d: %w", port, err)
		}
		return l, nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return l, nil
}
