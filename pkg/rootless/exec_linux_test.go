package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// output runs a script and returns its exit code, and what it wrote to $OUT.
func output(t *testing.T, pid int, script string) (int, string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("OUT", out)
	p, err := Exec(pid, []string{"sh", "-c", script}, os.Environ())
	require.NoError(t, err)
	code, err := p.Wait()
	require.NoError(t, err)
	raw, err := os.ReadFile(out)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	return code, strings.TrimSpace(string(raw))
}

func TestExecIsLikeAShell(t *testing.T) {
	for script, want := range map[string]int{
		"exit 0":        0,
		"exit 7":        7,
		"kill -TERM $$": 143,
		"kill -KILL $$": 137,
		"kill -INT $$":  130,
	} {
		code, _ := output(t, 0, script)
		require.Equal(t, want, code, script)
	}
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("COLOUR", "blue")
	_, out := output(t, 0, `echo "$COLOUR $(pwd) $(ulimit -Sn) $(grep SigBlk /proc/self/status)" > $OUT`)
	limit, err := exec.Command("sh", "-c", "ulimit -Sn").Output()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("blue %s %s SigBlk:\t0000000000000000", dir, strings.TrimSpace(string(limit))), out)
	const files = "echo $(ls /proc/self/fd) > $OUT"
	require.NoError(t, exec.Command("sh", "-c", files).Run())
	want, err := os.ReadFile(os.Getenv("OUT"))
	require.NoError(t, err)
	_, out = output(t, 0, files)
	require.Equal(t, strings.TrimSpace(string(want)), out, "nothing of this process is inherited")
}

func TestExecPassesSignalsOn(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	p, err := Exec(
		0,
		[]string{"sh", "-c", "trap 'exit 9' TERM; touch " + ready + "; while :; do sleep 0.05; done"},
		os.Environ(),
	)
	require.NoError(t, err)
	require.Eventually(
		t,
		func() bool { _, err := os.Stat(ready); return err == nil },
		30*time.Second,
		10*time.Millisecond,
	)
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	code, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 9, code)
}

func TestExecReportsShellExitCodes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(file, []byte("not a program"), 0o755))
	for name, want := range map[string]int{"no-such-command": ExitNotFound, file: ExitNotAllowed} {
		_, err := Exec(0, []string{name}, os.Environ())
		var failed *StartError
		require.ErrorAs(t, err, &failed, name)
		require.Equal(t, want, failed.Code, name)
	}
}

func TestExecEntersTheNamespaces(t *testing.T) {
	holder := exec.Command("sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	require.NoError(t, holder.Start())
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	pid := holder.Process.Pid
	dir := t.TempDir()
	t.Chdir(dir)
	code, out := output(
		t,
		pid,
		"echo $(pwd) $(id -u) $(readlink /proc/self/ns/user /proc/self/ns/mnt /proc/self/ns/net) > $OUT",
	)
	require.Zero(t, code)
	want := []string{dir, fmt.Sprint(os.Getuid())}
	for _, s := range spaces {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, s.name))
		require.NoError(t, err)
		want = append(want, link)
	}
	require.Equal(t, strings.Join(want, " "), out)

	_, err := Exec(1<<22+1, []string{"true"}, os.Environ())
	require.ErrorContains(t, err, "enter the session's network")
}
