package kit

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// Resource is something that tests share.
type Resource string

// The resources that tests share. The deployments are those of the shop and of the suite's own
// manifests.
const (
	Machine  Resource = "the network, resolver and daemon of the machine that runs the suite"
	Catalog  Resource = "deployment/catalog"
	Stock    Resource = "deployment/stock"
	Frontend Resource = "deployment/frontend"
	Subject  Resource = "deployment/subject"
	Target   Resource = "deployment/target"
	Queue    Resource = "deployment/queue"
	Web      Resource = "deployment/web"
)

// atOnce is how many parallel tests run at a time. The tests mostly wait for pods, but a load needs
// a processor, and with four at a time some waited too long for the end of a process.
const atOnce = 2

// Need is a resource that a test uses or changes.
type Need struct {
	resource Resource
	changes  bool
}

// Uses declares resources that a test needs and leaves as they are. Tests that use a resource run
// side by side.
func Uses(resources ...Resource) []Need { return needs(false, resources) }

// Changes declares resources that a test changes. No other test that needs one of them runs
// meanwhile.
func Changes(resources ...Resource) []Need { return needs(true, resources) }

func needs(changes bool, resources []Resource) []Need {
	var all []Need
	for _, r := range resources {
		all = append(all, Need{resource: r, changes: changes})
	}
	return all
}

// longest are the tests that take the longest. They start before others, so that the suite does not
// wait for one of them alone.
var longest = []string{
	"TestArgoRollout", "TestPersonalIntercepts", "TestConnectionsSurviveEveryPath", "TestFailOpen", "TestTogether",
	"TestRootlessTwoClusters",
}

// Parallel runs the rest of a test side by side with others, as soon as no other test is in the
// way. A test that does not call it runs alone, before all parallel ones: tests of the
// traffic-manager's own life have to.
func Parallel(t *testing.T, all ...[]Need) {
	t.Helper()
	t.Parallel()
	needs := slices.Concat(all...)
	start := time.Now()
	schedule.acquire(needs, slices.Contains(longest, t.Name()))
	t.Cleanup(func() { schedule.release(needs) })
	// testrun leaves this time out of its table of the slowest tests: keep the words alike.
	t.Logf("waited %.1fs for its turn", time.Since(start).Seconds())
}

// Alone lets a parallel test wait until no other test runs, and keeps others from starting until t
// ends. Only one test may call it: two would wait for each other.
func Alone(t *testing.T) {
	t.Helper()
	schedule.closeToOthers()
	t.Cleanup(schedule.openToOthers)
}

// schedule is the one of this test program: testing starts the tests, and nobody could hand it to
// them.
var schedule = newScheduler()

// scheduler gives resources to tests. A test gets all of its resources at once or waits, so that no
// two wait for each other.
type scheduler struct {
	mu sync.Mutex
	// mu guards the fields below.
	changed *sync.Cond
	waiting []*waiter // in the order in which they start
	users   map[Resource]int
	owned   map[Resource]bool
	running int
	closed  bool
}

// waiter is a test that waits for its resources.
type waiter struct {
	needs []Need
	ready chan struct{}
}

func newScheduler() *scheduler {
	s := &scheduler{users: map[Resource]int{}, owned: map[Resource]bool{}}
	s.changed = sync.NewCond(&s.mu)
	return s
}

func (s *scheduler) acquire(needs []Need, first bool) {
	w := &waiter{needs: needs, ready: make(chan struct{})}
	s.mu.Lock()
	if first {
		s.waiting = slices.Insert(s.waiting, 0, w)
	} else {
		s.waiting = append(s.waiting, w)
	}
	s.startLocked()
	s.mu.Unlock()
	<-w.ready
}

// startLocked starts the tests whose resources are free.
func (s *scheduler) startLocked() {
	s.waiting = slices.DeleteFunc(s.waiting, func(w *waiter) bool {
		if s.closed || s.running >= atOnce || !s.freeLocked(w.needs) {
			return false
		}
		s.running++
		for _, n := range w.needs {
			if n.changes {
				s.owned[n.resource] = true
			} else {
				s.users[n.resource]++
			}
		}
		close(w.ready)
		return true
	})
}

func (s *scheduler) freeLocked(needs []Need) bool {
	return !slices.ContainsFunc(needs, func(n Need) bool {
		return s.owned[n.resource] || (n.changes && s.users[n.resource] > 0)
	})
}

func (s *scheduler) release(needs []Need) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	for _, n := range needs {
		if n.changes {
			s.owned[n.resource] = false
		} else {
			s.users[n.resource]--
		}
	}
	s.startLocked()
	s.changed.Broadcast()
}

func (s *scheduler) closeToOthers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for s.running > 1 {
		s.changed.Wait()
	}
}

func (s *scheduler) openToOthers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = false
	s.startLocked()
}
