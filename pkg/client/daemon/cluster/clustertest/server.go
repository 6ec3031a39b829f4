// Package clustertest is an API server in memory for tests: it has the Sessions and Intercepts of
// one namespace, with lists and watches. Start with New.
package clustertest

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/rest"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
)

// Namespace is the namespace of all objects.
const Namespace = "shop"

// Server is an API server. Its methods may be called concurrently.
type Server struct {
	url string

	// mu guards the fields below.
	mu          sync.Mutex
	objects     map[string]*unstructured.Unstructured // by RESOURCE/NAME
	version     int
	history     []event // all events, so that a watch begins where its list ended
	watchers    map[*watcher]bool
	calls       []string // "VERB RESOURCE"
	onCreate    func(*unstructured.Unstructured)
	denyWatches bool
	broken      http.HandlerFunc
}

type watcher struct {
	resource, name string // an empty name means all
	events         chan []byte
	stop           chan struct{}
}

type event struct {
	version        int
	resource, name string
	text           []byte
}

// accepts reports whether a watcher is to receive an event.
func (w *watcher) accepts(e event) bool {
	return w.resource == e.resource && (w.name == "" || w.name == e.name)
}

// New starts a server for the duration of a test.
func New(t *testing.T) *Server {
	s := &Server{objects: map[string]*unstructured.Unstructured{}, watchers: map[*watcher]bool{}}
	api := httptest.NewServer(s)
	s.url = api.URL
	t.Cleanup(func() { s.BreakWatches(); api.CloseClientConnections(); api.Close() })
	return s
}

// Config returns the access to the server.
func (s *Server) Config() *rest.Config { return &rest.Config{Host: s.url} }

// Client connects to the server.
func (s *Server) Client(t *testing.T) *cluster.Client {
	t.Helper()
	c, err := cluster.Connect(s.Config(), Namespace, 0, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return c
}

// Put creates or replaces a Session or an Intercept.
func (s *Server) Put(object runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := toUnstructured(object)
	kind := "Session"
	if _, ok := object.(*detour.Intercept); ok {
		kind = "Intercept"
	}
	u.SetGroupVersionKind(detour.GroupVersion.WithKind(kind))
	s.storeLocked(u)
}

// Delete deletes an object, as in "sessions", "alice".
func (s *Server) Delete(resource, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleteLocked(resource, name)
}

// DeleteSilently deletes an object and tells no watch, like a connection that lags behind.
func (s *Server) DeleteSilently(resource, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, resource+"/"+name)
}

// OnCreate changes each object that a client creates.
func (s *Server) OnCreate(change func(*unstructured.Unstructured)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onCreate = change
}

// DenyWatches refuses watches, as a Role without that verb does.
func (s *Server) DenyWatches() {
	s.mu.Lock()
	s.denyWatches = true
	s.mu.Unlock()
	s.BreakWatches()
}

// BreakWatches ends the watches that are open.
func (s *Server) BreakWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		close(w.stop)
		delete(s.watchers, w)
	}
}

// Break answers everything by a handler, and ends the watches; nil repairs the server.
func (s *Server) Break(handler http.HandlerFunc) {
	s.mu.Lock()
	s.broken = handler
	s.mu.Unlock()
	if handler != nil {
		s.BreakWatches()
	}
}

// Silent is a handler for Break that never answers, like a network that has gone away.
func Silent(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the client has gone
	<-r.Context().Done()
}

// Unauthorized is a handler for Break that refuses the client's credentials.
func Unauthorized(w http.ResponseWriter, _ *http.Request) {
	writeError(w, apierrors.NewUnauthorized("Unauthorized"))
}

// Calls counts the calls of a kind since the last Calls with the same one, as in "get sessions".
func (s *Server) Calls(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.calls)
	s.calls = slices.DeleteFunc(s.calls, func(c string) bool { return c == kind })
	return before - len(s.calls)
}

// Names returns the names of the objects of a resource.
func (s *Server) Names(resource string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if r, name, _ := strings.Cut(key, "/"); r == resource {
			names = append(names, name)
		}
	}
	return names
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, rest, _ := strings.Cut(r.URL.Path, "/namespaces/"+Namespace+"/")
	resource, name, _ := strings.Cut(rest, "/")
	s.mu.Lock()
	if broken := s.broken; broken != nil {
		s.mu.Unlock()
		broken(w, r)
		return
	}
	if r.URL.Query().Get("watch") != "" {
		s.watchUnlock(w, r, resource)
		return
	}
	defer s.mu.Unlock()
	verb := map[string]string{"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	if verb == "get" && name == "" {
		verb = "list"
	}
	s.calls = append(s.calls, verb+" "+resource)
	object := s.objects[resource+"/"+name]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case verb == "list":
		_ = json.NewEncoder(w).Encode(s.listLocked(resource, selected(r)))
	case verb == "create":
		_ = json.NewEncoder(w).Encode(s.createLocked(r))
	case object == nil:
		group := schema.GroupResource{Group: detour.GroupVersion.Group, Resource: resource}
		writeError(w, apierrors.NewNotFound(group, name))
	case verb == "patch":
		var patch map[string]any
		_ = json.NewDecoder(r.Body).Decode(&patch)
		object = object.DeepCopy()
		merge(object.Object, patch)
		object.SetGeneration(object.GetGeneration() + 1)
		s.storeLocked(object)
		_ = json.NewEncoder(w).Encode(object)
	case verb == "delete":
		s.deleteLocked(resource, name)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
		})
	default:
		_ = json.NewEncoder(w).Encode(object)
	}
}

// watchUnlock serves a watch. It is called with s.mu locked, and unlocks it.
func (s *Server) watchUnlock(w http.ResponseWriter, r *http.Request, resource string) {
	s.calls = append(s.calls, "watch "+resource)
	if s.denyWatches {
		s.mu.Unlock()
		group := schema.GroupResource{Group: detour.GroupVersion.Group, Resource: resource}
		writeError(w, apierrors.NewForbidden(group, "", fmt.Errorf("no role allows it")))
		return
	}
	me := &watcher{resource: resource, name: selected(r), events: make(chan []byte, 1000), stop: make(chan struct{})}
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	for _, e := range s.history {
		if e.version > since && me.accepts(e) {
			me.events <- e.text
		}
	}
	s.watchers[me] = true
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	flush := w.(http.Flusher).Flush
	flush()
	for {
		select {
		case <-r.Context().Done():
			s.mu.Lock()
			delete(s.watchers, me)
			s.mu.Unlock()
			return
		case <-me.stop:
			return
		case e := <-me.events:
			_, _ = w.Write(e)
			flush()
		}
	}
}

func (s *Server) createLocked(r *http.Request) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	raw, _ := io.ReadAll(r.Body)
	_ = utiljson.Unmarshal(raw, &u.Object)
	if u.GetName() == "" {
		u.SetName(u.GetGenerateName() + "1")
	}
	u.SetUID(types.UID("uid-" + u.GetName()))
	u.SetGeneration(1)
	if s.onCreate != nil {
		s.onCreate(u)
	}
	s.storeLocked(u)
	return u
}

func (s *Server) storeLocked(u *unstructured.Unstructured) {
	s.version++
	u.SetNamespace(Namespace)
	u.SetResourceVersion(fmt.Sprint(s.version))
	key := resourceOf(u) + "/" + u.GetName()
	kind := "ADDED"
	if s.objects[key] != nil {
		kind = "MODIFIED"
	}
	s.objects[key] = u
	s.emitLocked(kind, u)
}

func (s *Server) deleteLocked(resource, name string) {
	if u := s.objects[resource+"/"+name]; u != nil {
		delete(s.objects, resource+"/"+name)
		s.version++
		u = u.DeepCopy()
		u.SetResourceVersion(fmt.Sprint(s.version))
		s.emitLocked("DELETED", u)
	}
}

func (s *Server) emitLocked(kind string, u *unstructured.Unstructured) {
	e := event{version: s.version, resource: resourceOf(u), name: u.GetName()}
	e.text, _ = json.Marshal(map[string]any{"type": kind, "object": u.Object})
	s.history = append(s.history, e)
	for w := range s.watchers {
		if w.accepts(e) {
			w.events <- e.text
		}
	}
}

func (s *Server) listLocked(resource, name string) map[string]any {
	items := []any{}
	kind := "SessionList"
	if resource == "intercepts" {
		kind = "InterceptList"
	}
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if u := s.objects[key]; resourceOf(u) == resource && (name == "" || name == u.GetName()) {
			items = append(items, u.Object)
		}
	}
	return map[string]any{
		"kind": kind, "apiVersion": detour.GroupVersion.String(), "items": items,
		"metadata": map[string]any{"resourceVersion": fmt.Sprint(s.version)},
	}
}

func resourceOf(u *unstructured.Unstructured) string { return strings.ToLower(u.GetKind()) + "s" }

// selected returns the name in a request's field selector.
func selected(r *http.Request) string {
	_, name, _ := strings.Cut(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	return name
}

func merge(into, patch map[string]any) {
	for key, value := range patch {
		if inner, ok := value.(map[string]any); ok {
			if old, ok := into[key].(map[string]any); ok {
				merge(old, inner)
				continue
			}
		}
		into[key] = value
	}
}

func toUnstructured(object runtime.Object) *unstructured.Unstructured {
	raw, _ := json.Marshal(object)
	u := &unstructured.Unstructured{}
	_ = utiljson.Unmarshal(raw, &u.Object) // keeps integers
	return u
}

func writeError(w http.ResponseWriter, err *apierrors.StatusError) {
	status := err.Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status)
}
