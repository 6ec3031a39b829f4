//go:build linux

// Package keeper keeps a pod's traffic-agent alive: a small process that holds the listening sockets, starts the agent with them, and starts
// it again when it dies. An agent that is killed costs the connections that go through it at that moment; new ones wait at the sockets
// until the next agent takes them, and the kubelet's probes see no change.
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
	// listenersEnv tells the agent the ports of the sockets that it inherits, from descriptor 3 on.
	listenersEnv = "DETOUR_LISTENERS"
	// An agent that ends within shortLife each time, failuresMax times in a row, is not started again: the kubelet shall see that.
	shortLife   = time.Second
	failuresMax = 5
	pause       = 50 * time.Millisecond // before a second start
)

// Run listens on ports and runs command until it is told to end. It hands SIGTERM and SIGINT on.
func Run(ports []uint16, command []string, log *slog.Logger) error {
	// The agent gets a signal when the thread ends that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	files, err := listen(ports)
	defer func() { closeAll(files) }()
	if err != nil {
		return err
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(told)
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
		go func() { ended <- agent.Wait() }()
		select {
		case s := <-told:
			// What waits at the sockets is the agent's to take; what comes later must not wait for nobody.
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
		if failures >= failuresMax {
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
			return files, fmt.Errorf("keep a listener: %w", err)
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

// Listen gives the agent the keeper's listener of a port, or without a keeper a new one.
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
