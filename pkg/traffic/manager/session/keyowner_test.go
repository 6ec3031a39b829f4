package session

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// The owner of a key is the session that was created first, whoever claims the key later.
func TestKeyOwners(t *testing.T) {
	private, err := wgkey.NewPrivate()
	require.NoError(t, err)
	key := private.Public()
	start := time.Now()
	session := func(uid string, second int, addresses ...string) detour.Session {
		return detour.Session{
			ObjectMeta: metav1.ObjectMeta{
				UID: types.UID(uid), CreationTimestamp: metav1.NewTime(start.Add(time.Duration(second) * time.Second)),
			},
			Spec: detour.SessionSpec{PublicKey: key.String()}, Status: detour.SessionStatus{Addresses: addresses},
		}
	}
	ending := session("ending", 0)
	ending.DeletionTimestamp = &metav1.Time{Time: start}
	noKey := session("no key", 0)
	noKey.Spec.PublicKey = "none"
	for name, c := range map[string]struct {
		all  []detour.Session
		want string
	}{
		"one":        {all: []detour.Session{session("a", 1)}, want: "a"},
		"the oldest": {all: []detour.Session{session("a", 2), session("b", 1)}, want: "b"},
		"the oldest, though another has addresses": {
			all: []detour.Session{session("a", 2, "100.64.0.2"), session("b", 1)}, want: "b",
		},
		"of the same second, with addresses": {
			all: []detour.Session{session("a", 1), session("b", 1, "100.64.0.2")}, want: "b",
		},
		"of the same second, by UID": {
			all: []detour.Session{session("b", 1), session("a", 1)}, want: "a",
		},
		"not a session that is being deleted": {
			all: []detour.Session{ending, noKey, session("a", 1)}, want: "a",
		},
		"no session": {all: []detour.Session{ending, noKey}, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if s := keyOwners(c.all)[key]; s != nil {
				got = string(s.UID)
			}
			require.Equal(t, c.want, got)
			for _, s := range c.all {
				other := otherKeyOwner(c.all, key, s.UID)
				require.Equal(t, c.want != "" && string(s.UID) != c.want, other != nil)
			}
		})
	}
}
