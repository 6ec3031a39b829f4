package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/version"
)

// waitForReason waits until a session's Ready condition has a reason.
func (s *shop) waitForReason(name, reason string) *detour.Session {
	s.Helper()
	var session detour.Session
	s.eventually("session "+name+" had the reason "+reason, func() bool {
		s.get(name, &session)
		ready := meta.FindStatusCondition(session.Status.Conditions, detour.ConditionReady)
		return ready != nil && ready.Reason == reason
	})
	return &session
}

// A session gets an address and what the laptop has to know, and is connected while its laptop is.
func TestSessionFromCreationToTheEnd(t *testing.T) {
	s := newShop(t)
	key := s.newSession("alice")
	session := s.waitForReason("alice", detour.ReasonAddressAssigned)
	require.Len(t, session.Status.Addresses, 1)
	assert.Regexp(t, `^198\.18\.0\.\d+$`, session.Status.Addresses[0])
	assert.Equal(t, "manager-1", session.Status.ManagerPod)
	assert.Equal(t, "cluster.local", session.Status.DNS.Domain)
	assert.Contains(t, session.Status.Subnets, "10.0.0.0/24", "the API server declares its ServiceCIDR")
	assert.Equal(t, sessionTTL, session.Status.GivenUpAfter.Duration)

	laptops.keepAlive(key)
	session = s.waitForReason("alice", detour.ReasonConnected)
	assert.NotNil(t, session.Status.LastSeen)
	s.waitForReason("alice", detour.ReasonLaptopGone)
	s.eventually("the session was deleted", func() bool {
		err := api.Get(s.Context(), client.ObjectKey{Namespace: s.namespace, Name: "alice"}, &detour.Session{})
		return apierrors.IsNotFound(err)
	})
}

// Two sessions never get the same address.
func TestAddressesAreUnique(t *testing.T) {
	s := newShop(t)
	seen := map[string]bool{}
	names := []string{"a", "b", "c", "d", "e", "f"}
	for _, name := range names {
		s.newSession(name)
	}
	for _, name := range names {
		session := s.waitForReason(name, detour.ReasonAddressAssigned)
		require.False(t, seen[session.Status.Addresses[0]])
		seen[session.Status.Addresses[0]] = true
	}
}

// A session cannot take over another one's key, even if it connects with it.
func TestKeyOfAnotherSession(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	var alice detour.Session
	s.get("alice", &alice)
	thief := &detour.Session{ObjectMeta: s.named("thief"), Spec: alice.Spec}
	s.create(thief)
	taken := s.waitForReason("thief", detour.ReasonKeyTaken)
	assert.Empty(t, taken.Status.Addresses)
	assert.Equal(t, "session alice in namespace "+s.namespace+" owns this public key: "+
		"create a session with a key of its own, as `detour connect` does", message(taken.Status.Conditions))
	s.waitForReason("alice", detour.ReasonConnected)
}

// A laptop of another version is told so.
func TestOtherVersion(t *testing.T) {
	s := newShop(t)
	s.newSession("model")
	var model detour.Session
	s.get("model", &model)
	require.NoError(t, api.Delete(t.Context(), &model))
	model.Spec.ClientVersion = "v99.0.0"
	s.create(&detour.Session{ObjectMeta: s.named("alice"), Spec: model.Spec})
	session := s.waitForReason("alice", detour.ReasonVersionMismatch)
	assert.Equal(t, "detour v99.0.0 on the laptop does not work with traffic-manager "+version.Version+
		": install that version on the laptop, or run `detour install` again", message(session.Status.Conditions))
}
