package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/detour-dev/detour/pkg/vif"
)

const (
	// portForwardAfter is how long the API server may leave the upgrade unanswered before Open
	// tries a port-forward too. An API server that cannot reach pods may answer only after 30 s.
	portForwardAfter = 3 * time.Second
	// retryUpgradeEvery is how often a stream by port-forward tries the upgrade, which is faster.
	retryUpgradeEvery = 15 * time.Second
)

// opener opens a stream of one transport.
type opener func(context.Context) (vif.Stream, error)

// opened is the result of an opener.
type opened struct {
	stream vif.Stream
	err    error
}

// openAny tries the upgrade, and a port-forward too when the upgrade fails or takes long. It
// returns the first stream that opens.
func (d *Dialer) openAny(ctx context.Context) (vif.Stream, error) {
	if s := d.takeSpare(); s.ReadWriteCloser != nil {
		return s, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan opened, 2)
	running := 0
	try := func(open opener) {
		running++
		// The goroutine ends with ctx at the latest. results has room for its result.
		go func() {
			s, err := open(ctx)
			results <- opened{stream: s, err: err}
		}()
	}
	try(d.upgrade)
	timer := time.NewTimer(portForwardAfter)
	defer timer.Stop()
	var failed error
	for forwarding := false; running > 0; {
		select {
		case r := <-results:
			running--
			if r.err == nil {
				cancel()
				// discard waits for the other attempt, which ends with ctx.
				go discard(results, running)
				return d.upgradeLater(r.stream), nil
			}
			failed = joinFailures(failed, r.err)
			if forwarding || !mayForward(r.err) {
				continue
			}
		case <-timer.C:
			if forwarding {
				continue
			}
		}
		forwarding = true
		try(d.portForward)
	}
	return vif.Stream{}, failed
}

// joinFailures adds the failure of a second attempt to that of the first.
func joinFailures(first, next error) error {
	if first == nil {
		return next
	}
	return fmt.Errorf("%w; nor by port-forward: %w", first, next)
}

// mayForward reports whether a port-forward can succeed after the upgrade failed with err: the API
// server answered, and knows the user and the service.
func mayForward(err error) bool {
	if errors.Is(err, errNoUpgrade) {
		return true
	}
	var status apierrors.APIStatus
	return errors.As(err, &status) && !apierrors.IsUnauthorized(err) && !errors.Is(err, ErrNotInstalled)
}

// discard closes the streams that open too late.
func discard(results <-chan opened, count int) {
	for range count {
		if r := <-results; r.err == nil {
			_ = r.stream.Close()
		}
	}
}

// upgradingStream is a stream by port-forward that closes when the upgrade works.
type upgradingStream struct {
	io.ReadWriteCloser
	stop context.CancelFunc // ends the goroutine that tries the upgrade
	once sync.Once
}

func (u *upgradingStream) Close() (err error) {
	u.once.Do(func() {
		u.stop()
		err = u.ReadWriteCloser.Close()
	})
	return err
}

// upgradeLater returns s, or for a port-forward a stream that tries the upgrade every
// retryUpgradeEvery. When the upgrade works, the stream closes, and the next Open returns the
// upgrade.
func (d *Dialer) upgradeLater(s vif.Stream) vif.Stream {
	if s.Transport != PortForward {
		return s
	}
	ctx, cancel := context.WithCancel(context.Background()) // the stream outlives the call of Open
	u := &upgradingStream{ReadWriteCloser: s.ReadWriteCloser, stop: cancel}
	// The goroutine ends when the stream closes.
	go func() {
		defer cancel()
		ticker := time.NewTicker(retryUpgradeEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			better, err := d.upgrade(ctx)
			if err != nil {
				continue
			}
			if ctx.Err() != nil {
				_ = better.Close()
				return
			}
			d.setSpare(better)
			_ = u.Close()
			return
		}
	}()
	return vif.Stream{ReadWriteCloser: u, Transport: s.Transport}
}

func (d *Dialer) takeSpare() (s vif.Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, d.spare = d.spare, vif.Stream{}
	return s
}

// setSpare leaves a stream for the next Open, in place of an older one. It closes the stream when
// the Dialer is closed.
func (d *Dialer) setSpare(s vif.Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		_ = s.Close()
		return
	}
	if d.spare.ReadWriteCloser != nil {
		_ = d.spare.Close()
	}
	d.spare = s
}

// Close closes the stream that waits for the next Open, and makes the Dialer keep none from now on.
// It does not close the streams that Open has returned.
func (d *Dialer) Close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	if s := d.takeSpare(); s.ReadWriteCloser != nil {
		_ = s.Close()
	}
}
