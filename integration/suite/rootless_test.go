package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/integration/cluster"
)

// person is an ordinary user's number on the machine of the suites; nobody has it.
const person = 12345

// user is an ordinary user with a home, a kubeconfig and a program, and no way to become root. /dev/net/tun is open to all, as on any
// laptop with udev; the machine of the suites has none, so the user gets a mount namespace with such a file.
type user struct {
	t       *testing.T
	dir     string
	program string
	runtime string // $XDG_RUNTIME_DIR
}

func ordinaryUser(t *testing.T) *user {
	t.Helper()
	dir, err := os.MkdirTemp("", "detour-user-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	u := &user{t: t, dir: dir, program: filepath.Join(dir, "program"), runtime: filepath.Join(dir, "run")}
	// The repository may be where nobody but root comes.
	own, err := exec.LookPath("detour")
	require.NoError(t, err)
	for from, to := range map[string]string{own: filepath.Join(dir, "bin", "detour"), filepath.Join(os.Getenv("DETOUR_ROOT"), "bin", "program"): u.program} {
		out, err := exec.Command("install", "-D", "-m", "755", from, to).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	config, err := exec.Command("kubectl", "config", "view", "--flatten", "--raw").Output()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kubeconfig"), config, 0o600))
	require.NoError(t, os.Mkdir(u.runtime, 0o700))
	for _, path := range []string{dir, u.runtime, filepath.Join(dir, "kubeconfig")} {
		require.NoError(t, os.Chown(path, person, person))
	}
	require.NoError(t, unix.Mknod(filepath.Join(dir, "tun"), unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
	require.NoError(t, os.Chmod(filepath.Join(dir, "tun"), 0o666))
	return u
}

// again is the same person in another session, as on another seat.
func (u *user) again() *user {
	other := *u
	other.runtime = filepath.Join(u.dir, "run-again")
	require.NoError(u.t, os.Mkdir(other.runtime, 0o700))
	require.NoError(u.t, os.Chown(other.runtime, person, person))
	return &other
}

const asUser = `mount --bind "$0" /dev/net/tun && exec setpriv --reuid 12345 --regid 12345 --clear-groups --no-new-privs -- "$@"`

func (u *user) command(args ...string) *exec.Cmd {
	prefix := []string{"--mount", "--propagation", "private", "sh", "-c", asUser, filepath.Join(u.dir, "tun")}
	cmd := exec.Command("unshare", append(prefix, args...)...)
	cmd.Dir = u.dir
	cmd.Env = []string{
		"PATH=" + filepath.Join(u.dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + u.dir, "KUBECONFIG=" + filepath.Join(u.dir, "kubeconfig"),
		"XDG_RUNTIME_DIR=" + u.runtime, "XDG_STATE_HOME=" + u.runtime + "/state", "COLOUR=blue",
	}
	return cmd
}

// try runs detour and returns its standard output, its standard error and its exit code.
func (u *user) try(args ...string) (string, string, int) {
	u.t.Helper()
	cmd := u.command(append([]string{"detour"}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	stop := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	if err := cmd.Run(); err != nil {
		require.IsType(u.t, &exec.ExitError{}, err)
	}
	return strings.TrimSpace(out.String()), complaint.String(), cmd.ProcessState.ExitCode()
}

func (u *user) detour(args ...string) string {
	u.t.Helper()
	out, complaint, code := u.try(args...)
	if code != 0 {
		log, _ := os.ReadFile(u.runtime + "/state/detour/daemon.log")
		require.Zero(u.t, code, "detour %s: %s\n%s", strings.Join(args, " "), complaint, log)
	}
	return out
}

func (u *user) inside(args ...string) string {
	u.t.Helper()
	return u.detour(append([]string{"run", "--"}, args...)...)
}

// hostState is all that detour could have changed.
func hostState(t *testing.T) string {
	t.Helper()
	var all string
	for _, args := range [][]string{{"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"-brief", "address"}, {"-brief", "link"}, {"rule"}} {
		out, err := exec.Command("ip", args...).Output()
		require.NoError(t, err)
		all += string(out)
	}
	resolver, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	return all + string(resolver)
}

// hostAddress is one of this machine's that is not loopback.
func hostAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback")
	return ""
}

func says(t *testing.T, address, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	require.NoError(t, err)
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

func TestRootless(t *testing.T) {
	u := ordinaryUser(t)
	before := hostState(t)
	u.detour("connect", "-n", "shop")
	t.Cleanup(func() { u.try("quit") })
	require.Equal(t, before, hostState(t), "while connected")

	t.Run("curl and a static Go binary, by name and by address", func(t *testing.T) {
		ip := kubectl(t, "-n", "shop", "get", "service", "catalog", "-o", "jsonpath={.spec.clusterIP}")
		urls := []string{"http://catalog.shop/", "http://catalog/", "http://catalog.shop.svc.cluster.local/", "http://" + ip + "/"}
		for _, ip := range strings.Fields(podsOf(t, "catalog", "{{if not .metadata.deletionTimestamp}}{{range .status.podIPs}}{{.ip}} {{end}}{{end}}"))[:2] {
			urls = append(urls, "http://"+net.JoinHostPort(ip, "8080")+"/") // of both families, where the cluster has both
		}
		for _, url := range urls {
			require.Equal(t, "cluster", editionOf(u.inside("curl", "-sS", "--max-time", "10", url)), url)
			require.Equal(t, "cluster", editionOf(u.inside(u.program, "fetch", url)), url)
		}
		_, err := net.LookupHost("catalog.shop")
		require.Error(t, err, "the host is not on the cluster's network")
	})

	t.Run("what is outside, but not the host's loopback", func(t *testing.T) {
		require.Equal(t, "from outside", u.inside(u.program, "fetch", "http://"+says(t, hostAddress(t), "from outside")))
		loopback := says(t, "127.0.0.1", "secret")
		_, port, err := net.SplitHostPort(loopback)
		require.NoError(t, err)
		for _, address := range []string{"127.0.0.1", "0.0.0.0", "198.18.255.254"} {
			_, complaint, code := u.try("run", "--", u.program, "fetch", "http://"+address+":"+port)
			require.Equal(t, 3, code)
			require.Contains(t, complaint, "refused", address)
		}
	})

	t.Run("the command is as if the shell had started it", func(t *testing.T) {
		require.Equal(t, strconv.Itoa(person), u.inside("id", "-u"))
		require.Equal(t, u.dir, u.inside("pwd"))
		require.Equal(t, "blue", u.inside("sh", "-c", "echo $COLOUR"))
		require.Contains(t, u.inside("grep", "CapEff", "/proc/self/status"), "0000000000000000")
		cmd := u.command("detour", "run", "cat")
		cmd.Stdin = strings.NewReader("from standard input")
		out, err := cmd.Output()
		require.NoError(t, err)
		require.Equal(t, "from standard input", string(out))
		for script, want := range map[string]int{"exit 7": 7, "kill -TERM $$": 143, "kill -INT $$": 130} {
			_, complaint, code := u.try("run", "--", "sh", "-c", script)
			require.Equal(t, want, code, "%s: %s", script, complaint)
		}
		require.Equal(t, "twice", u.inside("detour", "run", "--", "printf", "twice"), "from inside")
		_, complaint, code := u.try("run", "--", "no-such-command")
		require.Equal(t, 127, code)
		require.Contains(t, complaint, "no-such-command")
	})

	t.Run("a shell", func(t *testing.T) {
		cmd := u.command("detour", "shell")
		cmd.Env = append(cmd.Env, "SHELL=/bin/sh")
		cmd.Stdin = strings.NewReader("curl -sS --max-time 10 http://catalog.shop/\nexit 4\n")
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		require.Equal(t, "cluster", editionOf(string(out)), "%v %s", err, &complaint)
		require.Equal(t, 4, cmd.ProcessState.ExitCode())
	})

	t.Run("signals reach it", func(t *testing.T) {
		cmd := u.command("detour", "run", "--", "sh", "-c", `trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.1; done`)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line := make([]byte, 6)
		_, err = out.Read(line)
		require.NoError(t, err)
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		rest := make([]byte, 20)
		n, _ := out.Read(rest)
		require.Equal(t, "caught\n", string(rest[:n]))
		_ = cmd.Wait()
		require.Equal(t, 9, cmd.ProcessState.ExitCode())
	})

	t.Run("it has the terminal, and Ctrl-C reaches it once", func(t *testing.T) {
		script := `trap 'echo caught; sleep 0.3; exit 9' INT; tty; echo ready; while :; do sleep 0.1; done`
		cmd := u.command("script", "-qec", `exec detour run -- sh -c "`+script+`"`, "/dev/null")
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		var out lockedBuffer
		cmd.Stdout = &out
		require.NoError(t, cmd.Start())
		require.Eventually(t, func() bool { return strings.Contains(out.String(), "ready") }, patience, 20*time.Millisecond)
		_, err = in.Write([]byte{3})
		require.NoError(t, err)
		_ = cmd.Wait()
		require.Equal(t, 9, cmd.ProcessState.ExitCode())
		require.Equal(t, 1, strings.Count(out.String(), "caught"), out.String())
		require.Contains(t, out.String(), "/dev/pts/")
	})

	t.Run("a network whose holder is killed is made again", func(t *testing.T) {
		var status struct{ NamespacePid int }
		require.NoError(t, json.Unmarshal([]byte(u.detour("status", "-o", "json")), &status))
		require.NotZero(t, status.NamespacePid)
		require.NoError(t, syscall.Kill(status.NamespacePid, syscall.SIGKILL))
		require.Eventually(t, func() bool {
			page, _, _ := u.try("run", "--", "curl", "-sS", "--max-time", "5", "http://catalog.shop/")
			return editionOf(page) == "cluster"
		}, 40*time.Second, 500*time.Millisecond)
	})

	u.detour("quit")
	require.Equal(t, before, hostState(t), "after quit")
	requireNothingRuns(t)
}

func (u *user) daemonPID() int {
	u.t.Helper()
	out, err := exec.Command("pgrep", "-u", strconv.Itoa(person), "-f", "detour daemon").Output()
	require.NoError(u.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(u.t, err)
	return pid
}

// rootlessCommand connects an ordinary user and starts a command inside. reaches waits until that reaches the cluster and what is outside.
func rootlessCommand(t *testing.T) (u *user, reaches func()) {
	t.Helper()
	u = ordinaryUser(t)
	u.detour("connect", "-n", "shop")
	cmd := u.command("detour", "run", "--", "sh", "-c", "while :; do for url; do curl -sSf --max-time 2 -o /dev/null $url && echo $url; done; sleep 0.1; done", "sh", "http://catalog.shop/", "http://"+says(t, hostAddress(t), "outside"))
	var out lockedBuffer
	cmd.Stdout = &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		u.try("quit")
	})
	reaches = func() {
		before := len(out.String())
		require.Eventually(t, func() bool {
			now := out.String()[before:]
			return strings.Contains(now, "catalog.shop/\n") && strings.Count(now, "\n") > strings.Count(now, "catalog.shop/\n")
		}, 60*time.Second, 100*time.Millisecond, "what runs inside reaches the cluster and what is outside")
	}
	reaches()
	return u, reaches
}

// lockedBuffer can be read while a command writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// requireNothingRuns looks for processes of the user.
func requireNothingRuns(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		return exec.Command("ps", "-u", strconv.Itoa(person), "-o", "pid=,args=").Run() != nil
	}, patience, 50*time.Millisecond)
}

// As on a machine without udev, which opens the device to users.
func TestRootlessSaysWhatItNeeds(t *testing.T) {
	u := ordinaryUser(t)
	require.NoError(t, os.Chmod(filepath.Join(u.dir, "tun"), 0o600))
	_, complaint, code := u.try("connect", "-n", "shop")
	require.Equal(t, 1, code)
	require.Contains(t, complaint, "ordinary users may not open /dev/net/tun here: `sudo chmod 666 /dev/net/tun`")
	requireNothingRuns(t)
}

func TestRootlessHostLoopback(t *testing.T) {
	u := ordinaryUser(t)
	u.detour("connect", "-n", "shop", "--host-loopback")
	t.Cleanup(func() { u.detour("quit") })
	_, port, err := net.SplitHostPort(says(t, "127.0.0.1", "the host's own"))
	require.NoError(t, err)
	require.Equal(t, "the host's own", u.inside(u.program, "fetch", "http://198.18.255.254:"+port))
}

// secondCluster starts another Kubernetes beside the first, with the shop and detour on it, until the test's end. Its catalog says second.
func secondCluster(t *testing.T) (kubeconfig string) {
	t.Helper()
	c, err := cluster.Second()
	require.NoError(t, err)
	root, log := os.Getenv("DETOUR_ROOT"), slog.New(slog.DiscardHandler)
	t.Cleanup(func() { require.NoError(t, c.Down(log)) })
	require.NoError(t, c.Up(t.Context(), filepath.Join(root, "integration/cluster/build"), log))
	require.NoError(t, c.LoadImages(filepath.Join(root, "bin/traffic.tar"), filepath.Join(root, "bin/shop.tar")))
	require.NoError(t, c.Kubectl("apply", "-f", filepath.Join(root, "examples/shop/manifests/shop.yaml")))
	require.NoError(t, c.Kubectl("-n", "shop", "set", "env", "deployment/catalog", "EDITION=second"))
	detour(t, "install", "--image", managerImage, "--kubeconfig", c.Kubeconfig())
	require.NoError(t, c.Kubectl("-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s"))
	return c.Kubeconfig()
}

// Two sessions to two clusters at once, whose networks have the same addresses, as two clusters' often have: each has its own names, its own
// traffic and its own intercepts, and nothing of the other's.
func TestRootlessTwoClusters(t *testing.T) {
	other(t)
	second := secondCluster(t)
	u := ordinaryUser(t)
	v := u.again()
	merge := exec.Command("kubectl", "config", "view", "--flatten", "--raw")
	merge.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(u.dir, "kubeconfig")+":"+second)
	both, err := merge.Output()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(u.dir, "kubeconfig"), both, 0o600))
	t.Cleanup(func() { u.try("quit"); v.try("quit") })
	u.detour("connect", "-n", "shop")
	v.detour("connect", "-n", "shop", "--context", "detour2")
	type state struct {
		Context, Session string
		Subnets          []string
	}
	status := func(w *user) (s state) {
		require.NoError(t, json.Unmarshal([]byte(w.detour("status", "-o", "json")), &s))
		return s
	}
	one, two := status(u), status(v)
	require.Equal(t, "detour2", two.Context)
	require.NotEqual(t, one.Context, two.Context)
	require.Contains(t, one.Subnets, "10.96.0.0/16")
	require.Contains(t, two.Subnets, "10.96.0.0/16")
	answers := func(w *user, edition string) {
		t.Helper()
		require.Contains(t, w.inside("curl", "-sS", "--max-time", "10", "http://catalog/"), `"edition":"`+edition+`"`)
	}
	for range 2 {
		answers(u, "cluster")
		answers(v, "second")
	}
	u.inside("curl", "-sSf", "--max-time", "10", "-o", "/dev/null", "http://target.other/")
	_, complaint, code := v.try("run", "--", "curl", "-sS", "--max-time", "10", "http://target.other/")
	require.NotZero(t, code)
	require.Contains(t, complaint, "Could not resolve host")

	service := v.command("detour", "run", "--", u.program, "serve", "127.0.0.1:8080", `{"edition":"laptop"}`, "0")
	require.NoError(t, service.Start())
	end := sync.OnceFunc(func() { _ = exec.Command("pkill", "-f", u.program).Run(); _ = service.Wait() })
	t.Cleanup(end)
	v.detour("intercept", "catalog", "--port", "8080")
	require.Eventually(t, func() bool {
		page, _, _ := v.try("run", "--", "curl", "-sS", "--max-time", "10", "http://catalog/")
		return editionOf(page) == "laptop"
	}, 30*time.Second, 200*time.Millisecond)
	answers(u, "cluster")
	require.NotContains(t, kubectl(t, "get", "intercepts", "-A"), "catalog")
	u.detour("quit")
	answers(v, "laptop")
	v.detour("leave", "catalog")
	answers(v, "second")
	end()
	v.detour("quit")
	requireNothingRuns(t)
}

// Two services that both listen on port 8080 of 127.0.0.1 run side by side, each in a session of its own.
func TestRootlessInterceptsSideBySide(t *testing.T) {
	withoutAgent(t, "catalog")
	t.Cleanup(func() { withoutAgent(t, "frontend") })
	u := ordinaryUser(t)
	v := u.again()
	before := hostState(t)
	ends := map[string]func() int{}
	for service, who := range map[string]*user{"catalog": u, "frontend": v} {
		args := []string{"detour", "intercept", service, "-n", "shop", "--port", "8080"}
		if service == "catalog" {
			args = append(args, "--me")
		}
		cmd := who.command(append(args, "--", u.program, "serve", "127.0.0.1:8080", `{"edition":"laptop","service":"`+service+`"}`, "5")...)
		var out lockedBuffer
		cmd.Stdout, cmd.Stderr = &out, &out
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { who.try("quit") })
		over := make(chan struct{})
		go func() { defer close(over); _ = cmd.Wait() }()
		t.Cleanup(func() { _ = exec.Command("pkill", "-9", "-f", u.program).Run(); _ = cmd.Process.Kill() }) // also when the test fails
		ends[service] = func() int {
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			<-over
			return cmd.ProcessState.ExitCode()
		}
		require.Eventually(t, func() bool { return strings.Contains(out.String(), "intercepted: service "+service) }, 90*time.Second, 100*time.Millisecond, "%s", &out)
		page := func() string {
			out, _ := command("kubectl", "get", "--raw", "/api/v1/namespaces/shop/services/"+service+":http/proxy/")
			return out
		}
		if service == "catalog" { // as its user is told to
			var line string
			require.Eventually(t, func() (whole bool) {
				_, rest, _ := strings.Cut(out.String(), "try: ")
				line, _, whole = strings.Cut(rest, "\n")
				return whole
			}, 10*time.Second, 20*time.Millisecond, "%s", &out)
			page = func() string {
				answer, _ := who.command("sh", "-c", line).CombinedOutput()
				return string(answer)
			}
		}
		require.Eventually(t, func() bool { return strings.Contains(page(), `"edition":"laptop","service":"`+service+`"`) }, 90*time.Second, 300*time.Millisecond, "%s", &out)
	}
	require.Equal(t, before, hostState(t), "while both are intercepted")
	for service, end := range ends {
		require.Equal(t, 5, end(), service)
	}
	require.Equal(t, "cluster", inCluster())
	require.Equal(t, "No resources found in shop namespace.", kubectl(t, "-n", "shop", "get", "intercepts"))
	u.detour("quit")
	v.detour("quit")
	require.Equal(t, before, hostState(t), "after quit")
	requireNothingRuns(t)
}
