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

func TestKeyOwners(t *testing.T) {
	private, err := wgkey.NewPrivate()
	require.NoError(t, err)
	key := private.Public()
	began := time.Now()
	session := func(uid string, second int, addresses ...string) detour.Session {
		return detour.Session{
			ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), CreationTimestamp: metav1.NewTime(began.Add(time.Duration(second) * time.Second))},
			Spec:       detour.SessionSpec{PublicKey: key.String()}, Status: detour.SessionStatus{Addresses: addresses},
		}
	}
	ending := session("ending", 0)
	ending.DeletionTimestamp = &metav1.Time{Time: began}
	noKey := session("no key", 0)
	noKey.Spec.PublicKey = "none"
	for name, c := range map[string]struct {
		all  []detour.Session
		want string
	}{
		"one":                           {[]detour.Session{session("a", 1)}, "a"},
		"the first":                     {[]detour.Session{session("a", 2), session("b", 1)}, "b"},
		"whatever the others got":       {[]detour.Session{session("a", 2, "100.64.0.2"), session("b", 1)}, "b"},
		"in one second, with addresses": {[]detour.Session{session("a", 1), session("b", 1, "100.64.0.2")}, "b"},
		"in one second":                 {[]detour.Session{session("b", 1), session("a", 1)}, "a"},
		"not one that ends":             {[]detour.Session{ending, noKey, session("a", 1)}, "a"},
		"nobody":                        {[]detour.Session{ending, noKey}, ""},
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
