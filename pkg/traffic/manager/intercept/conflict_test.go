package intercept

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

// A refused user is told whose the other intercept is, since when, and what to do.
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
			"port 8080 of deployment/catalog is intercepted by you since 2030-01-02 03:04:05 UTC (intercept catalog-x): run `detour leave catalog-x` first",
		},
		"one's own in another session": {
			of("a", "alice@thinkpad", nil), of("b", "alice@thinkpad", nil),
			"port 8080 of deployment/catalog is intercepted by another session of alice@thinkpad since 2030-01-02 03:04:05 UTC (intercept catalog-x): run `detour leave` in that session, or take only your requests with --me or --header",
		},
		"another's personal one": {
			of("a", "alice@thinkpad", personal("x")), of("b", "bob@mac", personal("x")),
			"a request could match both this intercept and that of bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x) (header x-dev=x): add a condition, so that one is more specific, or ask them to leave it",
		},
		"one's own personal one": {
			of("a", "alice@thinkpad", personal("x")), of("a", "alice@thinkpad", personal("x")),
			"a request could match both this intercept and that of you since 2030-01-02 03:04:05 UTC (intercept catalog-x) (header x-dev=x): add a condition, so that one is more specific, or run `detour leave catalog-x` first",
		},
		"another's Secret": {
			of("a", "alice@thinkpad", secret("x")), of("b", "bob@mac", secret("y")),
			"the agent decrypts port 8080 with Secret y for bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x): use the same Secret",
		},
		"replaced by another": {
			of("a", "alice@thinkpad", nil), of("b", "bob@mac", mode(detour.ModeReplace)),
			"deployment/catalog is replaced by bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x): ask them to leave it",
		},
		"to replace what another intercepts": {
			of("a", "alice@thinkpad", mode(detour.ModeReplace)), of("b", "bob@mac", personal("x")),
			"deployment/catalog is intercepted by bob@mac since 2030-01-02 03:04:05 UTC (intercept catalog-x), and their other requests would reach no app: ask them to leave it",
		},
		"replaced by oneself": {
			of("a", "alice@thinkpad", work), of("a", "alice@thinkpad", work),
			"deployment/catalog is replaced by you since 2030-01-02 03:04:05 UTC (intercept catalog-x): run `detour leave catalog-x` first",
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
			var r Refusal
			require.ErrorAs(t, err, &r)
			assert.Equal(t, detour.ReasonPortTaken, r.Reason)
			assert.Equal(t, c.want, r.Message)
		})
	}
}

// Of two intercepts of one port exactly one precedes the other.
func TestPrecedes(t *testing.T) {
	at := func(seconds int64, uid string) *detour.Intercept {
		return &detour.Intercept{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), CreationTimestamp: metav1.Unix(seconds, 0)}}
	}
	active := func(i *detour.Intercept) *detour.Intercept {
		i.Status.Phase = detour.PhaseActive
		return i
	}
	for name, c := range map[string]struct {
		a, b *detour.Intercept
		want bool
	}{
		"active, in the same second":   {active(at(1, "b")), at(1, "a"), true},
		"active, though created later": {active(at(2, "b")), at(1, "a"), true},
		"created earlier":              {at(1, "b"), at(2, "a"), true},
		"created later":                {at(2, "a"), at(1, "b"), false},
		"in the same second, by UID":   {at(1, "a"), at(1, "b"), true},
		"itself":                       {at(1, "a"), at(1, "a"), false},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, precedes(c.a, c.b))
			if c.a.UID != c.b.UID {
				assert.NotEqual(t, precedes(c.a, c.b), precedes(c.b, c.a))
			}
		})
	}
}
