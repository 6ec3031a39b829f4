package suite

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// transcript returns what the subject sees of a request that has everything a request can have, and
// what the client sees of the response.
func transcript(t *testing.T, c *http.Client, who string) string {
	t.Helper()
	var b strings.Builder
	early := func(code int, h textproto.MIMEHeader) error {
		fmt.Fprintln(&b, code, h)
		return nil
	}
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: early})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://subject.shop/seen?x=1;y&z=%2f%41",
		struct{ io.Reader }{strings.NewReader("body")})
	require.NoError(t, err)
	r.Host = "preview.shop:8080"
	r.Trailer = http.Header{"X-Total": {"7"}}
	r.Header = http.Header{
		"Forwarded":           {"for=1.2.3.4;proto=https"},
		"X-Forwarded-For":     {"1.2.3.4", "5.6.7.8"},
		"X-Forwarded-Host":    {"shop.example"},
		"X-Forwarded-Proto":   {"https"},
		"Proxy-Authorization": {"Basic eA=="},
		"Te":                  {"trailers"},
		"Via":                 {"1.1 proxy"},
		"User-Agent":          {""},
		"Cookie":              {"a=b; c=d"},
		"X-Empty":             {""},
		"X-Dev":               {who},
	}
	answer, err := c.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	fmt.Fprintln(&b, answer.Proto, answer.Status, answer.ContentLength, answer.Header, answer.Trailer)
	b.Write(page)
	return b.String()
}

// To the clients that people use, a personally intercepted service behaves as if no agent stood
// before it.
func TestRealClients(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Subject), kit.Uses(kit.Machine))
	manifest := kit.DeploySubject(t)
	alice := kit.NewLaptop(t)
	stopped := alice.ServeSubject("alice")
	kit.Connect(t)
	before := map[string]string{}
	for version, client := range kit.Clients(t) {
		before[version] = transcript(t, client, "carol")
	}
	alice.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	served := map[string]string{"alice": "alice", "bob": "cluster"}

	t.Run("nobody sees a difference", func(t *testing.T) {
		for version, client := range kit.Clients(t) {
			require.Contains(t, before[version], "for=1.2.3.4")
			require.Contains(t, before[version], "X-Total:[7]", "the trailers of the request")
			// Marks of the same length, because the response tells its length.
			for _, who := range []string{"carol", "alice"} {
				require.Equal(t, before[version], strings.ReplaceAll(transcript(t, client, who), who, "carol"))
			}
		}
	})

	t.Run("curl", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "body")
		require.NoError(t, os.WriteFile(file, make([]byte, 3<<20), 0o600))
		for want, args := range map[string][]string{
			"HTTP/1.1 GET /a?b=c 0":        {},
			"HTTP/1.0 GET /a?b=c 0":        {"--http1.0"},
			"HTTP/2.0 GET /a?b=c 0":        {"--http2-prior-knowledge"},
			"HTTP/1.1 PUT /a?b=c 3145728":  {"-T", file, "-H", "Expect: 100-continue", "--expect100-timeout", "60"},
			"HTTP/1.1 POST /a?b=c 3145728": {"-H", "Transfer-Encoding: chunked", "--data-binary", "@" + file},
			"HTTP/2.0 PUT /a?b=c 3145728":  {"-T", file, "--http2-prior-knowledge"},
		} {
			for who, by := range served {
				out, err := kit.Run("curl", append([]string{
					"-sS", "--max-time", "20", "-H", "x-dev: " + who,
					"http://subject.shop/a?b=c",
				}, args...)...)
				require.NoError(t, err, out)
				require.Equal(t, by+" "+want, out)
				out, err = kit.Run("curl", "-sS", "--max-time", "20", "-I", "-H", "x-dev: "+who, "http://subject.shop/")
				require.NoError(t, err, out)
				require.Contains(t, out, "Served-By: "+by)
			}
		}
	})

	t.Run("its owner applies it again", func(t *testing.T) {
		deployment := func(fields string) string {
			return kit.Kubectl(t, "-n", "shop", "get", "deployment/subject", "-o", "jsonpath="+fields)
		}
		pods := kit.Pods(t, "subject", "{{.metadata.uid}} ")
		gitops := []string{"--server-side", "--force-conflicts", "--field-manager=gitops"}
		for _, way := range [][]string{nil, gitops} {
			apply := slices.Concat([]string{"apply", "-f", manifest}, way)
			spec := deployment("{.spec}")
			kit.Kubectl(t, apply...) // the first apply of each kind may add or drop kubectl's annotation
			require.Equal(t, spec, deployment("{.spec}"))
			generation := deployment("{.metadata.generation}")
			kit.Kubectl(t, apply...)
			kit.Kubectl(t, slices.Concat([]string{"diff", "-f", manifest},
				way)...) // fails if there is any difference
			require.Equal(t, generation, deployment("{.metadata.generation}"), way)
		}
		require.Equal(t, pods, kit.Pods(t, "subject", "{{.metadata.uid}} "))
		for _, client := range kit.Clients(t) {
			for who, by := range served {
				_, page := kit.AskSubject(t, client, http.MethodGet, "/", who, nil)
				require.True(t, strings.HasPrefix(page, by+" "), page)
			}
		}
	})

	t.Run("nghttp and h2load", func(t *testing.T) {
		for who, by := range served {
			out, err := kit.Run("nghttp", "-t", "20", "-H", "x-dev: "+who, "http://subject.shop/a")
			require.NoError(t, err, out)
			require.Equal(t, by+" HTTP/2.0 GET /a 0", out)
			for _, version := range [][]string{nil, {"--h1"}} {
				out, err = kit.Run("h2load", append([]string{
					"-n", "2000", "-c", "8", "-m", "10", "-H", "x-dev: " + who,
					"http://subject.shop/",
				}, version...)...)
				require.NoError(t, err, out)
				require.Contains(t, out, "2000 succeeded, 0 failed, 0 errored, 0 timeout")
				require.Contains(t, out, "2000 2xx")
			}
		}
	})

	t.Run("large heads", func(t *testing.T) {
		for version, client := range kit.Clients(t) {
			for who, by := range served {
				for size, want := range map[int]int{
					500 << 10: http.StatusOK,
					2 << 20:   http.StatusRequestHeaderFieldsTooLarge,
				} {
					if version == "HTTP/2.0" && want != http.StatusOK {
						continue // Go's client does not send headers that the server refuses
					}
					r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://subject.shop/head", nil)
					require.NoError(t, err)
					r.Header.Set("x-dev", who)
					r.Header.Set("x-large", strings.Repeat("x", size))
					answer, err := client.Do(r)
					require.NoError(t, err, "%s %d", version, size)
					page, err := io.ReadAll(answer.Body)
					_ = answer.Body.Close()
					require.NoError(t, err)
					require.Equal(t, want, answer.StatusCode)
					if want == http.StatusOK {
						require.Equal(t, fmt.Sprintf("%s %d\n", by, size), string(page))
					}
				}
			}
		}
	})

	t.Run("requests ahead of their answers, from a raw socket", func(t *testing.T) {
		c, err := net.Dial("tcp", "subject.shop:80")
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		var asked, wanted bytes.Buffer
		for i := range 50 {
			who := []string{"alice", "bob"}[rand.N(2)]
			connection := "keep-alive"
			if i == 49 {
				connection = "close"
			}
			fmt.Fprintf(&asked,
				"PUT /%d HTTP/1.1\r\nHost: subject\r\nX-Dev: %s\r\nConnection: %s\r\nContent-Length: 3\r\n\r\nabc",
				i, who, connection)
			fmt.Fprintf(&wanted, "%s HTTP/1.1 PUT /%d 3\n", served[who], i)
		}
		_, err = c.Write(asked.Bytes())
		require.NoError(t, err)
		answers, err := io.ReadAll(c)
		require.NoError(t, err)
		var got bytes.Buffer
		for line := range strings.Lines(string(answers)) {
			if strings.Contains(line, " PUT /") {
				got.WriteString(line)
			}
		}
		require.Equal(t, wanted.String(), got.String())
	})

	t.Run("a body of 1 GB", func(t *testing.T) {
		before := kit.AgentMemory(t, "VmRSS")
		exec := func(args ...string) string {
			return kit.Kubectl(t, append([]string{
				"-n", "shop", "exec", "deployment/subject", "-c", "subject", "--",
				"/subject",
			}, args...)...)
		}
		const many = 64 << 20 // more than the memory that an agent may use
		for who, by := range served {
			for version, size := range map[string]int{"1": 1 << 30, "2": many} {
				out := exec("upload", version, "http://subject.shop/sum", strconv.Itoa(size), who)
				require.True(t, strings.HasPrefix(out, fmt.Sprint(by, " ", size, " ")), out)
				require.Equal(t, fmt.Sprint(by, " ", many),
					exec("download", version, fmt.Sprint("http://subject.shop/zeros?", many), who))
			}
		}
		after := kit.AgentMemory(t, "VmHWM")
		t.Logf("the largest agent of the subject: %d KiB before, %d KiB at most meanwhile", before, after)
		require.Less(t, after, 64<<10, "KiB; %d before: the bodies were kept", before)
	})

	t.Run("requests fail for a laptop with --on-failure error", func(t *testing.T) {
		alice.Detour("leave", "subject")
		alice.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "--on-failure", "error")
		stopped()
		for version, client := range kit.Clients(t) {
			for range 3 {
				status, _ := kit.AskSubject(t, client, http.MethodGet, "/", "alice", nil)
				require.Equal(t, http.StatusServiceUnavailable, status, version)
				status, page := kit.AskSubject(t, client, http.MethodGet, "/", "bob", nil)
				require.Equal(t, http.StatusOK, status)
				require.Contains(t, page, "cluster "+version)
			}
		}
	})
}

// Each condition decides by itself and together with others, the most specific one first, for both
// versions of HTTP. A wiretap sees all requests.
func TestMatches(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Subject), kit.Uses(kit.Machine))
	kit.DeploySubject(t)
	kit.Connect(t)
	for _, c := range []struct {
		name string
		args []string
	}{
		{name: "alice", args: []string{"--path", "/only"}},
		{name: "bob", args: []string{
			"--path-prefix", "/api", "--query", "debug", "--query", "dev~=b.b", "--header", "x-dev~=(the )?b.b",
		}},
		{name: "carol", args: []string{"--method", "POST,PUT", "--header", "x-dev"}},
	} {
		d := kit.NewLaptop(t)
		d.ServeSubject(c.name)
		d.Detour(append([]string{"intercept", "subject", "--port", "18080", "-n", "shop"}, c.args...)...)
	}
	tapping := kit.NewLaptop(t)
	copies := make(chan string, 100)
	tap := &http.Server{
		Protocols: new(http.Protocols), ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			copies <- fmt.Sprintf("%s %s %s %d", r.Proto, r.Method, r.URL.RequestURI(), n)
			w.WriteHeader(http.StatusTeapot)
		}),
	}
	tap.Protocols.SetHTTP1(true)
	tap.Protocols.SetUnencryptedHTTP2(true)
	l := tapping.Listen()
	var serving sync.WaitGroup
	serving.Go(func() { _ = tap.Serve(l) })
	t.Cleanup(func() { _ = tap.Close(); serving.Wait() })
	tapping.Detour("intercept", "subject", "--port", "18080", "--mode", "wiretap", "-n", "shop")

	for version, client := range kit.Clients(t) {
		for _, c := range []struct{ method, path, who, want string }{
			{"GET", "/only", "", "alice"},
			{"POST", "/only?x=y", "bob", "alice"},
			{"GET", "/only/x", "", "cluster"},
			{"GET", "/api/x?debug&dev=bob", "bob", "bob"},
			{"GET", "/api?dev=bxb&debug=1", "the bob", "bob"},
			{"PUT", "/api?dev=bob&debug=1", "bob", "bob"},
			{"GET", "/api/x?debug&dev=robert", "bob", "cluster"},
			{"GET", "/api/x?debug&dev=bob", "robert", "cluster"},
			{"GET", "/api/x?debug&dev=bob", "", "cluster"},
			{"GET", "/api/x?dev=bob", "bob", "cluster"},
			{"GET", "/apis?debug&dev=bob", "bob", "cluster"},
			{"POST", "/", "anybody", "carol"},
			{"POST", "/", "", "cluster"},
			{"PUT", "/apis?debug&dev=bob", "bob", "carol"},
			{"DELETE", "/", "anybody", "cluster"},
		} {
			body := ""
			if c.method == "POST" {
				body = strings.Repeat("x", 50000)
			}
			line := fmt.Sprintf("%s %s %s %d", version, c.method, c.path, len(body))
			_, page := kit.AskSubject(t, client, c.method, c.path, c.who, strings.NewReader(body))
			require.Equal(t, c.want+" "+line+"\n", page)
			select {
			case copied := <-copies:
				require.Equal(t, line, copied)
			case <-time.After(20 * time.Second):
				require.Fail(t, "no copy", line)
			}
		}
	}
	list := kit.Detour(t, "list", "-n", "shop")
	require.Regexp(t,
		`(?m)^subject +80/http +deployment/subject +yes, by targetPort +\S+ +`+
			`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +(intercept|wiretap) +`, list)
	for _, of := range []string{
		"intercept +path /only",
		`intercept +header x-dev~=\(the \)\?b\.b, query debug, query dev~=b\.b, paths under /api`,
		"intercept +header x-dev, method POST or PUT",
		"wiretap +copies of all requests",
	} {
		require.Regexp(t, `(?m) \S+ +`+of+`$`, list)
	}

	require.NotContains(t, tapping.Detour("status"), "dropped")
	require.NoError(t, tap.Close())
	for _, client := range kit.Clients(t) {
		_, _ = kit.AskSubject(t, client, http.MethodGet, "/", "", nil)
	}
	kit.Eventually(t, func() bool { return strings.Contains(tapping.Detour("status"), "2 copies were dropped") })
	require.Contains(t, kit.Query(t, "shop", "intercepts", "{.items[*].status.dropped}"), "2")
}
