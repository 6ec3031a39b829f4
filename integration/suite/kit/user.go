package kit

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// firstUID is the lowest user number that the suite gives to its users. No account of the machine
// has these numbers.
const firstUID = 12345

var lastUID atomic.Int32

// User is an ordinary user with a home, a kubeconfig and a program, who cannot become root.
// /dev/net/tun is open to all users, as on any laptop with udev. The machine of the suites has no
// udev, so the user gets a mount namespace with such a file.
type User struct {
	Dir        string // the home directory
	Program    string // a static binary, see testdata/program
	RuntimeDir string // $XDG_RUNTIME_DIR
	UID        int

	t *testing.T
}

// NewUser makes a user with a number that no other user of the suite has.
func NewUser(t *testing.T) *User {
	t.Helper()
	dir, err := os.MkdirTemp("", "detour-user-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	u := &User{
		t: t, Dir: dir, Program: filepath.Join(dir, "program"), RuntimeDir: filepath.Join(dir, "run"),
		UID: firstUID - 1 + int(lastUID.Add(1)),
	}
	// Copies, because the repository may be in a directory that only root can enter.
	detour, err := exec.LookPath("detour")
	require.NoError(t, err)
	u.install(detour, filepath.Join(dir, "bin", "detour"))
	u.install(Path("bin", "program"), u.Program)
	config, err := exec.Command("kubectl", "config", "view", "--flatten", "--raw").Output()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kubeconfig"), config, 0o600))
	require.NoError(t, os.Mkdir(u.RuntimeDir, 0o700))
	for _, path := range []string{dir, u.RuntimeDir, filepath.Join(dir, "kubeconfig")} {
		u.own(path)
	}
	require.NoError(t, unix.Mknod(u.TUN(), unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
	require.NoError(t, os.Chmod(u.TUN(), 0o666))
	return u
}

func (u *User) install(from, to string) {
	u.t.Helper()
	out, err := exec.Command("install", "-D", "-m", "755", from, to).CombinedOutput()
	require.NoError(u.t, err, string(out))
}

func (u *User) own(path string) {
	u.t.Helper()
	require.NoError(u.t, os.Chown(path, u.UID, u.UID))
}

// TUN returns the path of the file that is the user's /dev/net/tun.
func (u *User) TUN() string { return filepath.Join(u.Dir, "tun") }

// WriteFile writes a file of the user's, below the home directory.
func (u *User) WriteFile(name, content string, mode os.FileMode) {
	u.t.Helper()
	path := filepath.Join(u.Dir, name)
	require.NoError(u.t, os.WriteFile(path, []byte(content), mode))
	u.own(path)
}

// SecondLogin returns the same user with another runtime directory, as on another seat.
func (u *User) SecondLogin() *User {
	u.t.Helper()
	other := *u
	other.RuntimeDir = filepath.Join(u.Dir, "run-again")
	require.NoError(u.t, os.Mkdir(other.RuntimeDir, 0o700))
	u.own(other.RuntimeDir)
	return &other
}

// HostName returns the host name that the user's programs see.
func (u *User) HostName() string { return "user-" + strconv.Itoa(u.UID) }

// asUser is a shell script: $0 is the file for /dev/net/tun, $1 the user's number, and the command
// follows.
const asUser = `mount --bind "$0" /dev/net/tun && uid=$1 && shift && echo "user-$uid" > /proc/sys/kernel/hostname &&
exec setpriv --reuid $uid --regid $uid --clear-groups --no-new-privs -- "$@"`

// Command prepares a program that runs as the user.
func (u *User) Command(args ...string) *exec.Cmd {
	prefix := []string{"--uts", "--mount", "--propagation", "private", "sh", "-c", asUser, u.TUN(), strconv.Itoa(u.UID)}
	cmd := exec.Command("unshare", append(prefix, args...)...)
	cmd.Dir = u.Dir
	cmd.Env = []string{
		"PATH=" + filepath.Join(u.Dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + u.Dir,
		"KUBECONFIG=" + filepath.Join(u.Dir, "kubeconfig"), "XDG_RUNTIME_DIR=" + u.RuntimeDir,
		"XDG_STATE_HOME=" + u.RuntimeDir + "/state", "COLOUR=blue",
	}
	return cmd
}

// Try runs detour and returns its standard output, its standard error and its exit code.
func (u *User) Try(args ...string) (stdout, stderr string, code int) {
	u.t.Helper()
	cmd := u.Command(append([]string{"detour"}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		require.IsType(u.t, &exec.ExitError{}, err)
	}
	return strings.TrimSpace(out.String()), complaint.String(), cmd.ProcessState.ExitCode()
}

// Detour runs detour and requires that it succeeds.
func (u *User) Detour(args ...string) string {
	u.t.Helper()
	out, complaint, code := u.Try(args...)
	if code != 0 {
		log, _ := os.ReadFile(u.RuntimeDir + "/state/detour/daemon.log")
		require.Zero(u.t, code, "detour %s: %s\n%s", strings.Join(args, " "), complaint, log)
	}
	return out
}

// Inside runs a command in the user's namespaces, by `detour run`.
func (u *User) Inside(args ...string) string {
	u.t.Helper()
	return u.Detour(append([]string{"run", "--"}, args...)...)
}

// DaemonPID returns the process number of the user's daemon.
func (u *User) DaemonPID() int {
	u.t.Helper()
	out, err := exec.Command("pgrep", "-u", strconv.Itoa(u.UID), "-f", "detour daemon").Output()
	require.NoError(u.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(u.t, err)
	return pid
}

// WaitForNoProcess waits until no process of the user runs.
func (u *User) WaitForNoProcess() {
	u.t.Helper()
	Eventually(u.t, func() bool {
		return exec.Command("ps", "-u", strconv.Itoa(u.UID), "-o", "pid=,args=").Run() != nil
	}, "all processes of user %d end", u.UID)
}

// StartRootlessLoop connects a new user and starts a command in the user's namespaces that requests
// a page of the cluster and one outside again and again. requireBoth waits until it gets both.
func StartRootlessLoop(t *testing.T) (u *User, requireBoth func()) {
	t.Helper()
	u = NewUser(t)
	u.Detour("connect", "-n", "shop")
	const loop = "while :; do for url; do curl -sSf --max-time 2 -o /dev/null $url && echo $url; done; sleep 0.1; done"
	outside := "http://" + ServeText(t, HostAddress(t), "outside")
	cmd := u.Command("detour", "run", "--", "sh", "-c", loop, "sh", "http://catalog.shop/", outside)
	var out Buffer
	cmd.Stdout = &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		u.Try("quit")
	})
	requireBoth = func() {
		t.Helper()
		before := len(out.String())
		Eventually(t, func() bool {
			now := out.String()[before:]
			inside := strings.Count(now, "catalog.shop/\n")
			return inside > 0 && strings.Count(now, "\n") > inside
		}, "the command inside reaches the cluster and what is outside")
	}
	requireBoth()
	return u, requireBoth
}
