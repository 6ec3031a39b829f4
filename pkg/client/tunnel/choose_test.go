package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-dev/detour/pkg/vif"
)

// fakeStream counts how often it was closed.
type fakeStream struct {
	io.ReadWriter
	closed atomic.Int32
}

func (f *fakeStream) Close() error { f.closed.Add(1); return nil }

// attempt is what one transport does when it is opened.
type attempt struct {
	after time.Duration
	err   error
}

// opener returns an opener of a transport that behaves as the attempt says, and the streams that it
// opens. It honours its context, as the real openers do.
func (a attempt) opener(transport string, made *[]*fakeStream) opener {
	return func(ctx context.Context) (vif.Stream, error) {
		select {
		case <-ctx.Done():
			return vif.Stream{}, ctx.Err()
		case <-time.After(a.after):
		}
		if a.err != nil {
			return vif.Stream{}, a.err
		}
		s := &fakeStream{}
		*made = append(*made, s)
		return vif.Stream{ReadWriteCloser: s, Transport: transport}, nil
	}
}

// switchable returns an opener that fails until works is set.
func switchable(works *atomic.Bool, made *[]*fakeStream) opener {
	fails, succeeds := attempt{err: errNoUpgrade}.opener(Upgrade, made), attempt{}.opener(Upgrade, made)
	return func(ctx context.Context) (vif.Stream, error) {
		if works.Load() {
			return succeeds(ctx)
		}
		return fails(ctx)
	}
}

func statusError(code int, reason metav1.StatusReason) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Code: int32(code), Reason: reason, Message: string(reason)}}
}

func TestOpenChoosesATransport(t *testing.T) {
	unavailable := statusError(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	for _, c := range []struct {
		name        string
		only        string
		upgrade     attempt
		portForward attempt
		want        string // the transport
		after       time.Duration
		err         string
	}{
		{name: "the upgrade works", upgrade: attempt{after: time.Second}, want: Upgrade, after: time.Second},
		{
			name:    "the API server does not reach the pod",
			upgrade: attempt{after: time.Second, err: unavailable}, portForward: attempt{after: time.Second},
			want: PortForward, after: 2 * time.Second,
		},
		{
			name:    "a proxy drops upgrades",
			upgrade: attempt{err: errNoUpgrade}, portForward: attempt{after: time.Second},
			want: PortForward, after: time.Second,
		},
		{
			name:    "the upgrade takes long",
			upgrade: attempt{after: time.Minute}, portForward: attempt{after: time.Second},
			want: PortForward, after: portForwardAfter + time.Second,
		},
		{
			name:    "the upgrade takes long and the port-forward longer",
			upgrade: attempt{after: 5 * time.Second}, portForward: attempt{after: time.Minute},
			want: Upgrade, after: 5 * time.Second,
		},
		{
			name:    "the credentials are not valid",
			upgrade: attempt{err: statusError(http.StatusUnauthorized, metav1.StatusReasonUnauthorized)},
			err:     "Unauthorized",
		},
		{
			name:    "the traffic-manager is not installed",
			upgrade: attempt{err: ErrNotInstalled},
			err:     ErrNotInstalled.Error(),
		},
		{
			name:    "the API server is not reachable",
			upgrade: attempt{err: errors.New("connection refused")},
			err:     "connection refused",
		},
		{
			name:    "neither works",
			upgrade: attempt{err: unavailable}, portForward: attempt{err: errors.New("no pod")},
			err: "ServiceUnavailable; nor by port-forward: no pod",
		},
		{name: "only the upgrade", only: OnlyUpgrade, upgrade: attempt{err: unavailable}, err: "ServiceUnavailable"},
		{name: "only the port-forward", only: OnlyPortForward, portForward: attempt{}, want: PortForward},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var upgrades, forwards []*fakeStream
				d := &Dialer{only: c.only}
				defer d.Close()
				d.upgrade = c.upgrade.opener(Upgrade, &upgrades)
				d.portForward = c.portForward.opener(PortForward, &forwards)
				began := time.Now()
				s, err := d.Open(t.Context())
				if c.err != "" {
					require.EqualError(t, err, c.err)
					return
				}
				require.NoError(t, err)
				assert.Equal(t, c.want, s.Transport)
				assert.Equal(t, c.after, time.Since(began), "in the test's own time")
				require.NoError(t, s.Close())
				synctest.Wait()
				for _, made := range append(upgrades, forwards...) {
					assert.EqualValues(t, 1, made.closed.Load(), "every stream is closed once")
				}
			})
		})
	}
}

// A stream by port-forward ends as soon as the upgrade works, and the next Open returns the
// upgrade.
func TestPortForwardGivesWayToTheUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var upgrades, forwards []*fakeStream
		var works atomic.Bool
		d := &Dialer{}
		d.upgrade = switchable(&works, &upgrades)
		d.portForward = attempt{}.opener(PortForward, &forwards)
		s, err := d.Open(t.Context())
		require.NoError(t, err)
		require.Equal(t, PortForward, s.Transport)
		time.Sleep(2*retryUpgradeEvery + time.Second)
		require.Zero(t, forwards[0].closed.Load(), "the upgrade does not work yet")

		works.Store(true)
		time.Sleep(retryUpgradeEvery)
		synctest.Wait()
		require.EqualValues(t, 1, forwards[0].closed.Load())
		require.NoError(t, s.Close(), "the owner may close it once more")
		next, err := d.Open(t.Context())
		require.NoError(t, err)
		require.Equal(t, Upgrade, next.Transport)
		require.Len(t, upgrades, 1, "Open returns the stream that was opened before")
		require.NoError(t, next.Close())
		d.Close()
	})
}

// A Dialer that is closed leaves no stream behind, also when the upgrade works only afterwards.
func TestClosedDialerKeepsNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var upgrades, forwards []*fakeStream
		var works atomic.Bool
		d := &Dialer{}
		d.upgrade = switchable(&works, &upgrades)
		d.portForward = attempt{}.opener(PortForward, &forwards)
		_, err := d.Open(t.Context())
		require.NoError(t, err)
		works.Store(true)
		d.Close()
		time.Sleep(retryUpgradeEvery)
		synctest.Wait()
		require.Len(t, upgrades, 1)
		require.EqualValues(t, 1, upgrades[0].closed.Load())
	})
}

func TestStatusOfARefusal(t *testing.T) {
	for _, c := range []struct {
		name   string
		code   int
		body   string
		reason metav1.StatusReason
		text   string
	}{
		{
			name:   "the API server's own words",
			code:   403,
			body:   `{"reason":"Forbidden","message":"alice may not"}`,
			reason: metav1.StatusReasonForbidden,
			text:   "alice may not",
		},
		{
			name:   "a proxy's page",
			code:   403,
			body:   "<html>",
			reason: metav1.StatusReasonForbidden,
			text:   "the API server answered 403 Forbidden",
		},
		{
			name:   "a proxy's page without a known code",
			code:   418,
			body:   "",
			reason: metav1.StatusReasonUnknown,
			text:   "the API server answered 418 I'm a teapot",
		},
		{
			name:   "an unauthorized user",
			code:   401,
			reason: metav1.StatusReasonUnauthorized,
			text:   "the API server answered 401 Unauthorized",
		},
		{
			name:   "a missing service",
			code:   404,
			reason: metav1.StatusReasonNotFound,
			text:   "the API server answered 404 Not Found",
		},
		{
			name:   "a pod that is not reached",
			code:   503,
			reason: metav1.StatusReasonServiceUnavailable,
			text:   "the API server answered 503 Service Unavailable",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			response := &http.Response{
				StatusCode: c.code,
				Status:     fmt.Sprintf("%d %s", c.code, http.StatusText(c.code)),
			}
			s := statusOf(response, []byte(c.body))
			assert.Equal(t, c.reason, s.Reason)
			assert.Equal(t, c.text, s.Message)
		})
	}
}
