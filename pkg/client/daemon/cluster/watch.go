package cluster

import (
	"context"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/resourcewatch"
)

// pollInterval is how often an awaited object is read while there is no watch: before the first
// list is there, after the connection is lost, or always if the user's Role is older than the right
// to watch.
const pollInterval = 500 * time.Millisecond

// Watch follows one Session and the Intercepts of its namespace. While a watch is not live its
// reads are requests to the API server, so that callers need not care.
type Watch struct {
	client     *Client
	key        client.ObjectKey // of the session
	sessions   watched[*detour.Session]
	intercepts watched[*detour.Intercept]
	group      *resourcewatch.Group
}

// watched are the objects of one kind, with the follower that keeps them.
type watched[T metav1.Object] struct {
	objects  resourcewatch.Objects[T]
	follower *resourcewatch.Follower
}

// get returns an object of a live watch.
func (w *watched[T]) get(name string) (object T, ok bool) {
	if !w.follower.Live() {
		return object, false
	}
	return w.objects.Get(name)
}

// Watch starts to follow the session with a name. The caller ends it with Close.
func (c *Client) Watch(session string) *Watch {
	w := &Watch{client: c, key: client.ObjectKey{Namespace: c.Namespace, Name: session}}
	name := fields.OneTermEqualSelector(metav1.ObjectNameField, session).String()
	sessions := c.watchConfig("sessions", name, func() client.ObjectList { return &detour.SessionList{} })
	sessions.Object = &detour.Session{}
	sessions.Store, sessions.OnLive = w.sessions.objects.Store(), w.sessions.objects.Notify
	w.sessions.follower = &resourcewatch.Follower{Config: sessions}

	all := c.watchConfig("intercepts", "", func() client.ObjectList { return &detour.InterceptList{} })
	all.Object = &detour.Intercept{}
	all.Store, all.OnLive = w.intercepts.objects.Store(), w.intercepts.objects.Notify
	w.intercepts.follower = &resourcewatch.Follower{Config: all}
	w.group = resourcewatch.Start(c.hangUp, w.sessions.follower, w.intercepts.follower)
	return w
}

// watchConfig returns how to list and to watch the objects of a resource that a field selector
// accepts.
func (c *Client) watchConfig(resource, selector string, newList func() client.ObjectList) resourcewatch.Config {
	options := func(o metav1.ListOptions) *client.ListOptions {
		o.FieldSelector = selector
		return &client.ListOptions{Namespace: c.Namespace, Raw: &o}
	}
	return resourcewatch.Config{
		Resource: resource, Fallback: "it is polled", DeniedLevel: slog.LevelDebug, Log: c.log,
		List: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := newList()
			ctx, done := context.WithTimeout(ctx, c.Config.Timeout)
			defer done()
			return list, c.watching.List(ctx, list, options(o))
		},
		Watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.watching.Watch(ctx, newList(), options(o))
		},
	}
}

// FollowLiveness restarts the watches when the laptop loses the cluster and when it is back. See
// resourcewatch.Group.
func (w *Watch) FollowLiveness(alive func() bool) { w.group.FollowLiveness(alive) }

// Close ends the watches and waits for them. Reads still work: they are requests then.
func (w *Watch) Close() { w.group.Close() }

// Changed returns a channel that is closed when the session or an intercept changes next, or when
// the watches become live or are lost.
func (w *Watch) Changed() (session, intercepts <-chan struct{}) {
	return w.sessions.objects.Changed(), w.intercepts.objects.Changed()
}

// Session reads the session. The object belongs to the caller. That it is absent is always the
// answer to a request.
func (w *Watch) Session(ctx context.Context) (*detour.Session, error) {
	if s, ok := w.sessions.get(w.key.Name); ok {
		return s.DeepCopy(), nil
	}
	return w.ReadSession(ctx)
}

// ReadSession is Session by a request, whether the watch is live or not.
func (w *Watch) ReadSession(ctx context.Context) (*detour.Session, error) {
	s := &detour.Session{}
	return s, w.client.Get(ctx, w.key, s)
}

// Intercept reads an intercept of the session's namespace. The object belongs to the caller. That
// it is absent is always the answer to a request.
func (w *Watch) Intercept(ctx context.Context, name string) (*detour.Intercept, error) {
	if i, ok := w.intercepts.get(name); ok {
		return i.DeepCopy(), nil
	}
	i := &detour.Intercept{}
	return i, w.client.Get(ctx, client.ObjectKey{Namespace: w.key.Namespace, Name: name}, i)
}

// AwaitSession reads the session at each change until done accepts it. It returns the last object
// that it has read, also with the error of a read or of ctx.
func (w *Watch) AwaitSession(ctx context.Context, done func(*detour.Session) bool) (*detour.Session, error) {
	inStore := func() bool { _, ok := w.sessions.get(w.key.Name); return ok }
	return await(ctx, w.sessions.objects.Changed, inStore, w.Session, done)
}

// AwaitIntercept is AwaitSession for an intercept.
func (w *Watch) AwaitIntercept(
	ctx context.Context, name string, done func(*detour.Intercept) bool,
) (*detour.Intercept, error) {
	inStore := func() bool { _, ok := w.intercepts.get(name); return ok }
	read := func(ctx context.Context) (*detour.Intercept, error) { return w.Intercept(ctx, name) }
	return await(ctx, w.intercepts.objects.Changed, inStore, read, done)
}

func await[T any](
	ctx context.Context, changed func() <-chan struct{}, inStore func() bool,
	read func(context.Context) (T, error), done func(T) bool,
) (T, error) {
	for {
		next := changed() // before the read, so that no change is missed
		object, err := read(ctx)
		if err != nil || done(object) {
			return object, err
		}
		var poll <-chan time.Time
		if !inStore() {
			poll = time.After(pollInterval)
		}
		select {
		case <-ctx.Done():
			return object, ctx.Err()
		case <-next:
		case <-poll:
		}
	}
}
