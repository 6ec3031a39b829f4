package session

import (
	"cmp"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// keyOwners returns the session that owns each public key. A public key is not secret: anybody can
// read it in another session and claim it. The owner is therefore the session that was created
// first. Of sessions that were created in the same second, it is the one that already has its
// addresses.
func keyOwners(all []detour.Session) map[wgkey.Key]*detour.Session {
	owners := map[wgkey.Key]*detour.Session{}
	for i := range all {
		s := &all[i]
		key, err := wgkey.Parse(s.Spec.PublicKey)
		if err != nil || !s.DeletionTimestamp.IsZero() {
			continue
		}
		if first := owners[key]; first == nil || compareAge(s, first) < 0 {
			owners[key] = s
		}
	}
	return owners
}

func compareAge(a, b *detour.Session) int {
	return cmp.Or(
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(min(len(b.Status.Addresses), 1), min(len(a.Status.Addresses), 1)),
		strings.Compare(string(a.UID), string(b.UID)),
	)
}

// otherKeyOwner returns the session that owns a key, unless it is the one with the given UID: then,
// and if nobody owns the key, it returns nil.
func otherKeyOwner(all []detour.Session, key wgkey.Key, uid types.UID) *detour.Session {
	if first := keyOwners(all)[key]; first != nil && first.UID != uid {
		return first
	}
	return nil
}
