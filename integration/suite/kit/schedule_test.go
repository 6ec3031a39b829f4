package kit

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// started reports whether a test with these needs has started. release ends it.
func started(s *scheduler, needs ...[]Need) (running func() bool, release func()) {
	var all []Need
	for _, some := range needs {
		all = append(all, some...)
	}
	ready := make(chan struct{})
	go func() { // ends when the test has started, which every test of the bubble does
		s.acquire(all, false)
		close(ready)
	}()
	running = func() bool {
		synctest.Wait()
		select {
		case <-ready:
			return true
		default:
			return false
		}
	}
	running()
	return running, func() { s.release(all) }
}

func TestTestsThatUseAResourceRunSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScheduler()
		first, endFirst := started(s, Uses(Catalog))
		second, endSecond := started(s, Uses(Catalog, Machine))
		require.True(t, first())
		require.True(t, second())
		endFirst()
		endSecond()
	})
}

func TestATestThatChangesAResourceHasItAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScheduler()
		user, endUser := started(s, Uses(Catalog))
		changer, endChanger := started(s, Changes(Catalog), Uses(Machine))
		other, endOther := started(s, Changes(Stock))
		require.True(t, user())
		require.False(t, changer())
		require.True(t, other(), "nothing is in its way")
		endUser()
		require.True(t, changer())
		late, endLate := started(s, Uses(Catalog))
		require.False(t, late())
		endChanger()
		require.True(t, late())
		endLate()
		endOther()
	})
}

func TestNoMoreTestsRunThanTheMachineBears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScheduler()
		var ends []func()
		for range atOnce {
			running, end := started(s)
			require.True(t, running())
			ends = append(ends, end)
		}
		last, endLast := started(s)
		require.False(t, last())
		ends[0]()
		require.True(t, last())
		endLast()
		for _, end := range ends[1:] {
			end()
		}
	})
}

func TestAloneWaitsForTheOthersAndKeepsNewOnesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScheduler()
		_, endFirst := started(s, Uses(Machine))
		_, endSecond := started(s, Uses(Catalog))
		alone := make(chan struct{})
		go func() { // ends when the second test has ended
			s.closeToOthers()
			close(alone)
		}()
		synctest.Wait()
		require.Len(t, alone, 0)
		third, endThird := started(s)
		require.False(t, third())
		endSecond()
		<-alone
		require.False(t, third())
		s.openToOthers()
		require.True(t, third())
		endThird()
		endFirst()
	})
}
