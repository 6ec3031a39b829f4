package vif

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif/transport"
)

const (
	// A stream that ended is dialled again after a pause that grows from redialMin, at first only
	// to redialSoon: a traffic-manager that restarts is back within seconds.
	redialMin  = 200 * time.Millisecond
	redialSoon = time.Second
	redialMax  = 5 * time.Second
	// soonAfter is how long redialSoon is the longest pause.
	soonAfter = 30 * time.Second
	// deadAfter is how long the cluster may be silent before it counts as lost, and a stream before
	// it is dialled anew.
	deadAfter = 6 * time.Second
	// streamCheck is how often a stream is asked whether it should end.
	streamCheck = time.Second
)

var errSilent = errors.New("the traffic-manager fell silent")

// dialFunc opens a stream.
type dialFunc func(context.Context) (Stream, error)

// dial keeps one stream open, with a growing pause between failures, until ctx ends.
func (i *Interface) dial(ctx context.Context, open dialFunc) {
	backoff, worked := netx.Backoff{Min: redialMin, Max: redialMax}, time.Now()
	for ctx.Err() == nil {
		stream, err := open(ctx)
		if err == nil {
			i.setProblem(nil)
			i.log.Debug("the tunnel's stream is open", "path", stream.Transport)
			opened := time.Now()
			err = i.serve(ctx, stream, open)
			if time.Since(opened) > deadAfter {
				worked = time.Now()
				backoff.Reset()
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			i.setProblem(err)
		}
		backoff.Max = redialMax
		if time.Since(worked) < soonAfter {
			backoff.Max = redialSoon
		}
		pause := backoff.Next()
		i.log.Info("the tunnel's stream ended, opening a new one", "err", err, "duration", pause)
		_ = netx.Sleep(ctx, pause)
	}
}

// serve runs one stream, and the express streams beside it.
func (i *Interface) serve(ctx context.Context, opened Stream, open dialFunc) error {
	return i.carry(ctx, opened, func(s *transport.StreamWire) (end func()) {
		remove := i.paths.AddStream(s, opened.Transport)
		ctx, stop := context.WithCancel(ctx)
		var express sync.WaitGroup
		express.Go(func() { i.maintainExpress(ctx, s, open) })
		return func() { remove(); stop(); express.Wait() }
	}, i.checkSilence)
}

// carry runs a stream until it ends, ctx ends, or check returns an error. It calls check once a
// second, begin when messages can be sent, and what begin returned when the stream has ended.
func (i *Interface) carry(
	ctx context.Context, rw io.ReadWriteCloser,
	begin func(*transport.StreamWire) (end func()), check func(*transport.StreamWire) error,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var checking sync.WaitGroup
	end := func() {}
	err := i.paths.Serve(ctx, rw, func(s *transport.StreamWire) {
		end = begin(s)
		checking.Go(func() {
			tick := time.NewTicker(streamCheck)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					if err := check(s); err != nil {
						cancel(err)
						return
					}
				}
			}
		})
	})
	end()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	checking.Wait()
	return err
}

// checkSilence returns an error when the cluster has fallen silent on a stream.
func (i *Interface) checkSilence(s *transport.StreamWire) error {
	if i.paths.Unanswered(s) > deadAfter {
		return errSilent
	}
	return nil
}
