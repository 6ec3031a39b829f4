package manager

import (
	"cmp"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// holders says which session has each public key: anybody can read another's key in its session and claim it. It is the first; of those made in the
// same second the one that has its addresses already.
func holders(all []detour.Session) map[wgkey.Key]*detour.Session {
	have := map[wgkey.Key]*detour.Session{}
	for i := range all {
		s := &all[i]
		key, err := wgkey.Parse(s.Spec.PublicKey)
		if err != nil || !s.DeletionTimestamp.IsZero() {
			continue
		}
		if first := have[key]; first == nil || earlier(s, first) < 0 {
			have[key] = s
		}
	}
	return have
}

func earlier(a, b *detour.Session) int {
	return cmp.Or(
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(min(len(b.Status.Addresses), 1), min(len(a.Status.Addresses), 1)),
		strings.Compare(string(a.UID), string(b.UID)),
	)
}

// otherHolder is the session that has the key of this one in its place, or nil.
func otherHolder(all []detour.Session, key wgkey.Key, uid types.UID) *detour.Session {
	if first := holders(all)[key]; first != nil && first.UID != uid {
		return first
	}
	return nil
}
