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
			ObjectMeta: metav1.ObjectMeta{
				Name: "catalog-x", CreationTimestamp: metav1.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
			},
			Spec: detour.InterceptSpec{Session: session, Service: "catalog", Mode: detour.ModeIntercept},
			Status: detour.InterceptStatus{
				Laptop: laptop, ContainerPort: 8080, Workload: &detour.WorkloadRef{Kind: "Deployment", Name: "catalog"},
			},
		}
		if change != nil {
			change(i)
		}
		return i
	}
	personal := func(value string) func(*detour.Intercept) {
		return func(i *detour.Intercept) {
			i.Spec.Match = &detour.Match{
				Headers: []detour.ValueMatch{{Name: "x-dev", Type: detour.MatchExact, Value: value}},
			}
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
	alice := func(change func(*detour.Intercept)) *detour.Intercept { return of("a", "alice@thinkpad", change) }
	bob := func(change func(*detour.Intercept)) *detour.Intercept { return of("b", "bob@mac", change) }
	for name, c := range map[string]struct {
		mine, other *detour.Intercept
		want        string // empty: the two can exist side by side
	}{
		"another user's": {
			mine: alice(nil), other: bob(nil),
			want: "port 8080 of deployment/catalog is intercepted by bob@mac since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x): ask them to leave it, or take only your requests with --me or --header",
		},
		"the user's own": {
			mine: alice(nil), other: alice(nil),
			want: "port 8080 of deployment/catalog is intercepted by you since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x): run `detour leave catalog-x` first",
		},
		"the user's own in another session": {
			mine: alice(nil), other: of("b", "alice@thinkpad", nil),
			want: "port 8080 of deployment/catalog is intercepted by another session of alice@thinkpad since " +
				"2030-01-02 03:04:05 UTC (intercept catalog-x): run `detour leave` in that session, " +
				"or take only your requests with --me or --header",
		},
		"another user's personal one": {
			mine: alice(personal("x")), other: bob(personal("x")),
			want: "a request could match both this intercept and the one by bob@mac since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x) (header x-dev=x): add a condition, so that one is more specific, " +
				"or ask them to leave it",
		},
		"the user's own personal one": {
			mine: alice(personal("x")), other: alice(personal("x")),
			want: "a request could match both this intercept and the one by you since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x) (header x-dev=x): add a condition, so that one is more specific, " +
				"or run `detour leave catalog-x` first",
		},
		"another Secret": {
			mine: alice(secret("x")), other: bob(secret("y")),
			want: "the agent decrypts port 8080 with Secret y for bob@mac since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x): use the same Secret",
		},
		"replaced by another user": {
			mine: alice(nil), other: bob(mode(detour.ModeReplace)),
			want: "deployment/catalog is replaced by bob@mac since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x): ask them to leave it",
		},
		"to be replaced while another user intercepts it": {
			mine: alice(mode(detour.ModeReplace)), other: bob(personal("x")),
			want: "deployment/catalog is intercepted by bob@mac since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x), and their other requests would reach no app: ask them to leave it",
		},
		"replaced by the user": {
			mine: alice(work), other: alice(work),
			want: "deployment/catalog is replaced by you since 2030-01-02 03:04:05 UTC " +
				"(intercept catalog-x): run `detour leave catalog-x` first",
		},
		"another port":        {mine: alice(port(9090)), other: bob(nil)},
		"personal and global": {mine: alice(personal("x")), other: bob(nil)},
		"disjoint":            {mine: alice(personal("x")), other: bob(personal("y"))},
		"a wiretap":           {mine: alice(mode(detour.ModeWiretap)), other: bob(mode(detour.ModeReplace))},
		"another port and TLS": {
			mine: alice(secret("x")), other: bob(func(i *detour.Intercept) { secret("y")(i); port(9090)(i) }),
		},
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
		return &detour.Intercept{
			ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), CreationTimestamp: metav1.Unix(seconds, 0)},
		}
	}
	active := func(i *detour.Intercept) *detour.Intercept {
		i.Status.Phase = detour.PhaseActive
		return i
	}
	for name, c := range map[string]struct {
		a, b *detour.Intercept
		want bool
	}{
		"active, in the same second":   {a: active(at(1, "b")), b: at(1, "a"), want: true},
		"active, though created later": {a: active(at(2, "b")), b: at(1, "a"), want: true},
		"created earlier":              {a: at(1, "b"), b: at(2, "a"), want: true},
		"created later":                {a: at(2, "a"), b: at(1, "b"), want: false},
		"in the same second, by UID":   {a: at(1, "a"), b: at(1, "b"), want: true},
		"itself":                       {a: at(1, "a"), b: at(1, "a"), want: false},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, precedes(c.a, c.b))
			if c.a.UID != c.b.UID {
				assert.NotEqual(t, precedes(c.a, c.b), precedes(c.b, c.a))
			}
		})
	}
}
