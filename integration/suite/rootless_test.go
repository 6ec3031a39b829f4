package suite

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

func TestRootless(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog))
	u := kit.NewUser(t)
	before := kit.HostState(t)
	u.Detour("connect", "-n", "shop")
	t.Cleanup(func() { u.Try("quit") })
	require.Equal(t, before, kit.HostState(t), "while connected")

	t.Run("curl and a static Go binary, by name and by address", func(t *testing.T) {
		ip := kit.Query(t, "shop", "service catalog", "{.spec.clusterIP}")
		urls := []string{
			"http://catalog.shop/", "http://catalog/", "http://catalog.shop.svc.cluster.local/",
			"http://" + ip + "/",
		}
		for _, ip := range strings.Fields(kit.Pods(t, "catalog",
			"{{if not .metadata.deletionTimestamp}}{{range .status.podIPs}}{{.ip}} {{end}}{{end}}"))[:2] {
			// Of both families, if the cluster has both.
			urls = append(urls, "http://"+net.JoinHostPort(ip, "8080")+"/")
		}
		for _, url := range urls {
			require.Equal(t, "cluster", kit.EditionOf(u.Inside("curl", "-sS", "--max-time", "10", url)), url)
			require.Equal(t, "cluster", kit.EditionOf(u.Inside(u.Program, "fetch", url)), url)
		}
		_, err := net.LookupHost("catalog.shop")
		require.Error(t, err, "the host is not on the cluster's network")
	})

	t.Run("what is outside, but not the host's loopback", func(t *testing.T) {
		require.Equal(t, "from outside", u.Inside(u.Program, "fetch", "http://"+kit.ServeText(t, kit.HostAddress(t),
			"from outside")))
		loopback := kit.ServeText(t, "127.0.0.1", "secret")
		_, port, err := net.SplitHostPort(loopback)
		require.NoError(t, err)
		for _, address := range []string{"127.0.0.1", "0.0.0.0", "198.18.255.254"} {
			_, complaint, code := u.Try("run", "--", u.Program, "fetch", "http://"+address+":"+port)
			require.Equal(t, 3, code)
			require.Contains(t, complaint, "refused", address)
		}
	})

	t.Run("the command is as if the shell had started it", func(t *testing.T) {
		require.Equal(t, strconv.Itoa(u.UID), u.Inside("id", "-u"))
		require.Equal(t, u.Dir, u.Inside("pwd"))
		require.Equal(t, "blue", u.Inside("sh", "-c", "echo $COLOUR"))
		require.Contains(t, u.Inside("grep", "CapEff", "/proc/self/status"), "0000000000000000")
		cmd := u.Command("detour", "run", "cat")
		cmd.Stdin = strings.NewReader("from standard input")
		out, err := cmd.Output()
		require.NoError(t, err)
		require.Equal(t, "from standard input", string(out))
		for script, want := range map[string]int{"exit 7": 7, "kill -TERM $$": 143, "kill -INT $$": 130} {
			_, complaint, code := u.Try("run", "--", "sh", "-c", script)
			require.Equal(t, want, code, "%s: %s", script, complaint)
		}
		require.Equal(t, "twice", u.Inside("detour", "run", "--", "printf", "twice"), "from inside")
		_, complaint, code := u.Try("run", "--", "no-such-command")
		require.Equal(t, 127, code)
		require.Contains(t, complaint, "no-such-command")
	})

	t.Run("a shell", func(t *testing.T) {
		cmd := u.Command("detour", "shell")
		cmd.Env = append(cmd.Env, "SHELL=/bin/sh")
		cmd.Stdin = strings.NewReader("curl -sS --max-time 10 http://catalog.shop/\nexit 4\n")
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		require.Equal(t, "cluster", kit.EditionOf(string(out)), "%v %s", err, &complaint)
		require.Equal(t, 4, cmd.ProcessState.ExitCode())
	})

	t.Run("signals reach it", func(t *testing.T) {
		cmd := u.Command("detour", "run", "--", "sh", "-c",
			`trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.1; done`)
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
		cmd := u.Command("script", "-qec", `exec detour run -- sh -c "`+script+`"`, "/dev/null")
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		var out kit.Buffer
		cmd.Stdout = &out
		require.NoError(t, cmd.Start())
		kit.Eventually(t, func() bool { return strings.Contains(out.String(), "ready") })
		_, err = in.Write([]byte{3})
		require.NoError(t, err)
		_ = cmd.Wait()
		require.Equal(t, 9, cmd.ProcessState.ExitCode())
		require.Equal(t, 1, strings.Count(out.String(), "caught"), out.String())
		require.Contains(t, out.String(), "/dev/pts/")
	})

	t.Run("a network whose helper is killed is made again", func(t *testing.T) {
		var status struct{ NamespacePid int }
		require.NoError(t, json.Unmarshal([]byte(u.Detour("status", "-o", "json")), &status))
		require.NotZero(t, status.NamespacePid)
		require.NoError(t, syscall.Kill(status.NamespacePid, syscall.SIGKILL))
		kit.Eventually(t, func() bool {
			page, _, _ := u.Try("run", "--", "curl", "-sS", "--max-time", "5", "http://catalog.shop/")
			return kit.EditionOf(page) == "cluster"
		})
	})

	u.Detour("quit")
	require.Equal(t, before, kit.HostState(t), "after quit")
	u.WaitForNoProcess()
}

// On a machine without udev, which opens the device to users, rootless mode says what to do.
func TestRootlessSaysWhatItNeeds(t *testing.T) {
	kit.Parallel(t)
	u := kit.NewUser(t)
	require.NoError(t, os.Chmod(filepath.Join(u.Dir, "tun"), 0o600))
	_, complaint, code := u.Try("connect", "-n", "shop")
	require.Equal(t, 1, code)
	require.Contains(t, complaint, "ordinary users may not open /dev/net/tun here: `sudo chmod 666 /dev/net/tun`")
	u.WaitForNoProcess()
}

func TestRootlessHostLoopback(t *testing.T) {
	kit.Parallel(t)
	u := kit.NewUser(t)
	u.Detour("connect", "-n", "shop", "--host-loopback")
	t.Cleanup(func() { u.Detour("quit") })
	_, port, err := net.SplitHostPort(kit.ServeText(t, "127.0.0.1", "the host's own"))
	require.NoError(t, err)
	require.Equal(t, "the host's own", u.Inside(u.Program, "fetch", "http://198.18.255.254:"+port))
}

// A user has two sessions to two clusters at once, whose networks have the same addresses, as is
// common. Each session has its own names, its own traffic and its own intercepts, and nothing of
// the other's.
func TestRootlessTwoClusters(t *testing.T) {
	// Names that a session does not know go to the machine's resolvers, which must not be detour's.
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog, kit.Target))
	kit.DeployTarget(t)
	second := kit.StartSecondCluster(t)
	u := kit.NewUser(t)
	v := u.SecondLogin()
	merge := exec.Command("kubectl", "config", "view", "--flatten", "--raw")
	merge.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(u.Dir, "kubeconfig")+":"+second)
	both, err := merge.Output()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(u.Dir, "kubeconfig"), both, 0o600))
	t.Cleanup(func() { u.Try("quit"); v.Try("quit") })
	u.Detour("connect", "-n", "shop")
	v.Detour("connect", "-n", "shop", "--context", "detour2")
	type state struct {
		Context, Session string
		Subnets          []string
	}
	status := func(w *kit.User) (s state) {
		require.NoError(t, json.Unmarshal([]byte(w.Detour("status", "-o", "json")), &s))
		return s
	}
	one, two := status(u), status(v)
	require.Equal(t, "detour2", two.Context)
	require.NotEqual(t, one.Context, two.Context)
	require.Contains(t, one.Subnets, "10.96.0.0/16")
	require.Contains(t, two.Subnets, "10.96.0.0/16")
	answers := func(w *kit.User, edition string) {
		t.Helper()
		require.Contains(t, w.Inside("curl", "-sS", "--max-time", "10", "http://catalog/"), `"edition":"`+edition+`"`)
	}
	for range 2 {
		answers(u, "cluster")
		answers(v, "second")
	}
	u.Inside("curl", "-sSf", "--max-time", "10", "-o", "/dev/null", "http://target.other/")
	_, complaint, code := v.Try("run", "--", "curl", "-sS", "--max-time", "10", "http://target.other/")
	require.NotZero(t, code)
	require.Contains(t, complaint, "Could not resolve host")

	service := v.Command("detour", "run", "--", u.Program, "serve", "127.0.0.1:8080", `{"edition":"laptop"}`, "0")
	require.NoError(t, service.Start())
	end := sync.OnceFunc(func() { _ = exec.Command("pkill", "-f", u.Program).Run(); _ = service.Wait() })
	t.Cleanup(end)
	v.Detour("intercept", "catalog", "--port", "8080")
	kit.Eventually(t, func() bool {
		page, _, _ := v.Try("run", "--", "curl", "-sS", "--max-time", "10", "http://catalog/")
		return kit.EditionOf(page) == "laptop"
	})
	answers(u, "cluster")
	require.NotContains(t, kit.Kubectl(t, "get", "intercepts", "-A"), "catalog")
	u.Detour("quit")
	answers(v, "laptop")
	v.Detour("leave", "catalog")
	answers(v, "second")
	end()
	v.Detour("quit")
	u.WaitForNoProcess()
}

// Two services that both listen on port 8080 of 127.0.0.1 run side by side, each in a session of
// its own.
func TestRootlessInterceptsSideBySide(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine, kit.Catalog, kit.Frontend))
	kit.RemoveAgent(t, "catalog")
	t.Cleanup(func() { kit.RemoveAgent(t, "frontend") })
	u := kit.NewUser(t)
	v := u.SecondLogin()
	before := kit.HostState(t)
	ends := map[string]func() int{}
	for service, who := range map[string]*kit.User{"catalog": u, "frontend": v} {
		args := []string{"detour", "intercept", service, "-n", "shop", "--port", "8080"}
		if service == "catalog" {
			args = append(args, "--me")
		}
		cmd := who.Command(append(args, "--", u.Program, "serve", "127.0.0.1:8080",
			`{"edition":"laptop","service":"`+service+`"}`, "5")...)
		var out kit.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { who.Try("quit") })
		over := make(chan struct{})
		go func() { defer close(over); _ = cmd.Wait() }()
		t.Cleanup(func() { // also if the test fails
			_ = exec.Command("pkill", "-9", "-f", u.Program).Run()
			_ = cmd.Process.Kill()
		})
		ends[service] = func() int {
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			<-over
			return cmd.ProcessState.ExitCode()
		}
		kit.Eventually(t, func() bool { return strings.Contains(out.String(), "intercepted: service "+service) }, "%s",
			&out)
		page := func() string {
			out, _ := kit.Run("kubectl", "get", "--raw", "/api/v1/namespaces/shop/services/"+service+":http/proxy/")
			return out
		}
		if service == "catalog" { // the way the output tells the user
			var line string
			kit.Eventually(t, func() (whole bool) {
				_, rest, _ := strings.Cut(out.String(), "try: ")
				line, _, whole = strings.Cut(rest, "\n")
				return whole
			}, "%s", &out)
			page = func() string {
				answer, _ := who.Command("sh", "-c", line).CombinedOutput()
				return string(answer)
			}
		}
		kit.Eventually(t, func() bool { return strings.Contains(page(), `"edition":"laptop","service":"`+service+`"`) },
			"%s", &out)
	}
	require.Equal(t, before, kit.HostState(t), "while both are intercepted")
	for service, end := range ends {
		require.Equal(t, 5, end(), service)
	}
	require.Equal(t, "cluster", kit.ClusterEdition())
	services := kit.Query(t, "shop", "intercepts", "{.items[*].spec.service}")
	for service := range ends {
		require.NotContains(t, strings.Fields(services), service)
	}
	u.Detour("quit")
	v.Detour("quit")
	require.Equal(t, before, kit.HostState(t), "after quit")
	u.WaitForNoProcess()
}
