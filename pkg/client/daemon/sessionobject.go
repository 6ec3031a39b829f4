package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// managerTimeout is how long the traffic-manager may take to accept a new session.
const managerTimeout = 20 * time.Second

// record is the Session object as far as this laptop has acted on it.
type record struct {
	// mu guards the field below.
	mu     sync.Mutex
	object detour.Session
}

// get returns a copy.
func (r *record) get() detour.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return *r.object.DeepCopy()
}

func (r *record) update(change func(*detour.SessionStatus)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.object.Status)
}

// create creates the Session object, starts to watch it, and waits until the traffic-manager has
// accepted the session.
func (s *session) create(ctx context.Context, key wgkey.Key, progress func(string)) error {
	s.deleteLeftover(ctx)
	namespace := s.request.Namespace
	object := detour.Session{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: cluster.ObjectName(s.request.User) + "-"},
		Spec: detour.SessionSpec{
			PublicKey: key.Public().String(), ClientVersion: version.Version,
			User: printable(s.request.User), Host: printable(s.host),
		},
	}
	progress("making a session in namespace " + namespace)
	if err := s.cluster.Create(ctx, &object); err != nil {
		doing := "create a session in namespace " + namespace
		return explain.Context{Doing: doing, Server: s.server, Namespace: namespace}.Error(err)
	}
	s.record = &record{object: object}
	if err := os.WriteFile(s.journal(), []byte(s.server+" "+namespace+"/"+object.Name), 0o600); err != nil {
		// Without the journal a crash leaves the object behind until the traffic-manager gives it
		// up.
		s.log.Warn("writing the journal of the session failed", "err", err)
	}
	s.watch = s.cluster.Watch(object.Name)
	waiting, done := context.WithTimeout(ctx, managerTimeout)
	defer done()
	accepted, err := s.watch.AwaitSession(waiting, func(o *detour.Session) bool {
		return permanentError(o.Status) != nil || o.Status.ManagerPublicKey != "" && len(o.Status.Addresses) > 0
	})
	switch {
	case err == nil:
		s.record = &record{object: *accepted}
		return permanentError(accepted.Status)
	case ctx.Err() == nil && waiting.Err() != nil:
		return fmt.Errorf("the traffic-manager does not answer within %s: "+
			"check whether its pod runs with `kubectl -n %s get pods`",
			managerTimeout, s.request.ManagerNamespace)
	}
	return explain.Error(err, "read the session")
}

// permanentError returns why the traffic-manager has no tunnel for a session, or nil.
func permanentError(status detour.SessionStatus) error {
	reasons := []string{detour.ReasonVersionMismatch, detour.ReasonNoAddressLeft, detour.ReasonKeyTaken}
	c := meta.FindStatusCondition(status.Conditions, detour.ConditionReady)
	if c != nil && slices.Contains(reasons, c.Reason) {
		return errors.New(c.Message)
	}
	return nil
}

// deleteObject deletes the Session object. failed is why the API server did not answer before: then
// deleteObject does not try. It returns why the object may still be there.
func (s *session) deleteObject(ctx context.Context, failed error) error {
	if failed == nil {
		object := s.record.get()
		failed = cluster.WithShortTimeout(ctx, func(ctx context.Context) error {
			return client.IgnoreNotFound(s.cluster.Delete(ctx, &object))
		})
	}
	if failed != nil {
		s.log.Warn("deleting the session failed", "err", failed)
		return failed
	}
	_ = os.Remove(s.journal())
	return nil
}

// journal is the file that names the Session object, so that the next connect deletes one that a
// crash left behind. Machines that share a home, over NFS for example, have one each: the object of
// another machine may be in use there.
func (s *session) journal() string { return filepath.Join(s.paths.State, "session-"+s.host) }

// deleteLeftover deletes the object that the journal names.
func (s *session) deleteLeftover(ctx context.Context) {
	text, err := os.ReadFile(s.journal())
	if err != nil {
		return
	}
	if server, object, ok := strings.Cut(string(text), " "); ok && server == s.server {
		namespace, name, _ := strings.Cut(object, "/")
		_ = s.cluster.Delete(ctx, &detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
	}
	_ = os.Remove(s.journal())
}

// managerPod returns the name of the traffic-manager's pod that serves the session. A new pod has
// another name.
func (s *session) managerPod(ctx context.Context) (string, error) {
	fresh, err := s.watch.ReadSession(ctx)
	if err != nil {
		return "", err
	}
	if fresh.Status.ManagerPod == "" {
		return "", errors.New("the traffic-manager has not published the name of its pod yet")
	}
	return fresh.Status.ManagerPod, nil
}

func hostName() string {
	host, err := os.Hostname()
	if err != nil {
		return "laptop"
	}
	return host
}

// printable removes the characters of a name that a Session must not have.
func printable(name string) string {
	return strings.Map(func(c rune) rune {
		if unicode.Is(unicode.C, c) {
			return -1
		}
		return c
	}, name)
}
