package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

// Who is refused is told who is in the way, since which day, and what to do.
func TestClash(t *testing.T) {
	of := func(session, laptop string, change func(*detour.Intercept)) *detour.Intercept {
		i := &detour.Intercept{
			ObjectMeta: metav1.ObjectMeta{Name: "catalog-x", CreationTimestamp: metav1.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)},
			Spec:       detour.InterceptSpec{Session: session, Service: "catalog", Mode: detour.ModeIntercept},
			Status:     detour.InterceptStatus{Laptop: laptop, ContainerPort: 8080, Workload: &detour.WorkloadRef{Kind: "Deployment", Name: "catalog"}},
		}
		if change != nil {
			change(i)
		}
		return i
	}
	personal := func(value string) func(*detour.Intercept) {
		return func(i *detour.Intercept) {
			i.Spec.Match = &detour.Match{Headers: []detour.ValueMatch{{Name: "x-dev", Type: detour.MatchExact, Value: value}}}
			i.Status.Requests = "header x-dev=" + value
		}
	}
	mode := func(m detour.Mode) func(*detour.Intercept) { return func(i *detour.Intercept) { i.Spec.Mode = m } }
	work := func(i *detour.Intercept) {
		i.Spec.Mode, i.Status.ContainerPort, i.Status.Container = detour.ModeReplace, 0, "app"
	}
	secret := func(name string) func(*detour.Intercept) {
		return func(i *detour.Intercept) { personal(name)(i); i.Spec.TLS = &detour.TLS{Secret: name} }
	}
	port := func(n int32) func(*detour.Intercept) { return func(i *detour.Intercept) { i.Status.ContainerPort = n } }
	for name, c := range map[string]struct {
		mine, other *detour.Intercept
		want        string
	}{
		"another's": {
			of("a", "alice@thinkpad", nil), of("b", "bob@mac", nil),
			"port 8080 of deployment/catalog is intercepted by bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x): ask them to leave it, or take only your requests with --me or --header",
		},
		"one's own": {
			of("a", "alice@thinkpad", nil), of("a", "alice@thinkpad", nil),
			"port 8080 of deployment/catalog is intercepted by yourself since 2030-01-02 03:04:05 UTC (intercept catalog-x): run `detour leave catalog-x` first",
		},
		"one's own in another session": {
			of("a", "alice@thinkpad", nil), of("b", "alice@thinkpad", nil),
			"port 8080 of deployment/catalog is intercepted by another session of alice@thinkpad since 2030-01-02 03:04:05 UTC (intercept catalog-x): leave it there, or take only your requests with --me or --header",
		},
		"another's personal one": {
			of("a", "alice@thinkpad", personal("x")), of("b", "bob@mac", personal("x")),
			"requests could match both this and those of bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x) (header x-dev=x): add a condition, so that one is more specific, or ask them to leave it",
		},
		"one's own personal one": {
			of("a", "alice@thinkpad", personal("x")), of("a", "alice@thinkpad", personal("x")),
			"requests could match both this and those of yourself since 2030-01-02 03:04:05 UTC (intercept catalog-x) (header x-dev=x): add a condition, so that one is more specific, or run `detour leave catalog-x` first",
		},
		"another's Secret": {
			of("a", "alice@thinkpad", secret("x")), of("b", "bob@mac", secret("y")),
			"port 8080 is looked into with Secret y for bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x): name the same one",
		},
		"replaced by another": {
			of("a", "alice@thinkpad", nil), of("b", "bob@mac", mode(detour.ModeReplace)),
			"deployment/catalog is replaced by bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x): ask them to leave it",
		},
		"to replace what another intercepts": {
			of("a", "alice@thinkpad", mode(detour.ModeReplace)), of("b", "bob@mac", personal("x")),
			"deployment/catalog is intercepted by bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x), whose other requests would find no app: ask them to leave it",
		},
		"replaced by oneself": {
			of("a", "alice@thinkpad", work), of("a", "alice@thinkpad", work),
			"deployment/catalog is replaced by yourself since 2030-01-02 03:04:05 UTC (intercept catalog-x): run `detour leave catalog-x` first",
		},
		"another port":         {of("a", "alice@thinkpad", port(9090)), of("b", "bob@mac", nil), ""},
		"personal and global":  {of("a", "alice@thinkpad", personal("x")), of("b", "bob@mac", nil), ""},
		"disjoint":             {of("a", "alice@thinkpad", personal("x")), of("b", "bob@mac", personal("y")), ""},
		"a wiretap":            {of("a", "alice@thinkpad", mode(detour.ModeWiretap)), of("b", "bob@mac", mode(detour.ModeReplace)), ""},
		"another port and TLS": {of("a", "alice@thinkpad", secret("x")), of("b", "bob@mac", func(i *detour.Intercept) { secret("y")(i); port(9090)(i) }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := clash(c.mine, c.other)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			var r refusal
			require.ErrorAs(t, err, &r)
			assert.Equal(t, detour.ReasonPortTaken, r.reason)
			assert.Equal(t, c.want, r.message)
		})
	}
}
