package cli

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/detour-dev/detour/pkg/route"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// curlCommand returns a command line whose request meets the conditions of m. It returns nothing if
// the conditions do not determine such a request, as with a regular expression.
func curlCommand(m *agentv1.Match, i *daemonv1.Intercept) string {
	words := []string{"curl"}
	if i.TlsSecret != "" {
		words = append(words, "-k")
	}
	words = append(words, curlMethod(m.Methods)...)
	if m.User != "" {
		words = append(words, "-H", shellQuote(route.UserHeader+": "+m.User))
	}
	for _, h := range m.Headers {
		field, ok := curlHeader(h)
		if !ok {
			return ""
		}
		words = append(words, "-H", shellQuote(field))
	}
	target, ok := curlURL(m, i)
	if !ok {
		return ""
	}
	return strings.Join(append(words, shellQuote(target)), " ")
}

// curlMethod returns the flags for one of the methods.
func curlMethod(methods []string) []string {
	if len(methods) == 0 || slices.Contains(methods, http.MethodGet) {
		return nil // GET is curl's default
	}
	notHead := slices.IndexFunc(methods, func(method string) bool { return method != http.MethodHead })
	if notHead < 0 {
		return []string{"-I"} // with -X HEAD curl would wait for a body
	}
	return []string{"-X", methods[notHead]}
}

func curlHeader(h *agentv1.ValueMatch) (field string, ok bool) {
	switch {
	case h.Type == agentv1.MatchType_MATCH_TYPE_REGEX:
		return "", false
	case h.Type == agentv1.MatchType_MATCH_TYPE_PRESENT:
		return h.Name + ": 1", true
	case h.Value == "":
		return h.Name + ";", true // curl removes a header that has nothing after its colon
	}
	return h.Name + ": " + h.Value, true
}

func curlURL(m *agentv1.Match, i *daemonv1.Intercept) (target string, ok bool) {
	var query []string
	for _, q := range m.Query {
		if q.Type == agentv1.MatchType_MATCH_TYPE_REGEX {
			return "", false
		}
		query = append(query, url.QueryEscape(q.Name)+"="+url.QueryEscape(q.Value))
	}
	scheme, defaultPort := "http", uint32(80)
	if i.TlsSecret != "" {
		scheme, defaultPort = "https", 443
	}
	host := i.Service + "." + i.Namespace
	if i.ServicePort != defaultPort {
		host += fmt.Sprintf(":%d", i.ServicePort)
	}
	path := url.URL{Path: cmp.Or(m.Path, m.PathPrefix, "/")}
	target = scheme + "://" + host + path.EscapedPath()
	if len(query) > 0 {
		target += "?" + strings.Join(query, "&")
	}
	return target, true
}

// shellQuote makes s one word of a shell.
func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@%+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
