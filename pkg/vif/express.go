package vif

import (
	"context"
	"errors"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif/transport"
)

const (
	// expressCheck is how often an Interface looks whether an express stream would be of use. One
	// that failed is opened again after expressMin, and later and later, up to expressMax.
	expressCheck           = 250 * time.Millisecond
	expressMin, expressMax = time.Second, 30 * time.Second
)

var errUnwanted = errors.New("another path is in use")

// maintainExpress keeps an express stream open beside a stream while the path selector has a use
// for one.
func (i *Interface) maintainExpress(ctx context.Context, parent *transport.StreamWire, open dialFunc) {
	backoff := netx.Backoff{Min: expressMin, Max: expressMax}
	for wait := expressCheck; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = expressCheck
		if !i.paths.WantsExpress(parent) {
			continue
		}
		opened := time.Now()
		err := i.serveExpress(ctx, parent, open)
		if ctx.Err() != nil || errors.Is(err, errUnwanted) {
			continue
		}
		if time.Since(opened) > expressMax {
			backoff.Reset()
		}
		wait = backoff.Next()
		i.log.Debug("the express stream ended, opening a new one", "err", err, "duration", wait)
	}
}

// serveExpress opens one express stream and runs it until it ends, or until there is no more use
// for it.
func (i *Interface) serveExpress(ctx context.Context, parent *transport.StreamWire, open dialFunc) error {
	express, err := open(ctx)
	if err != nil {
		return err
	}
	return i.carry(ctx, express, func(s *transport.StreamWire) (end func()) {
		return i.paths.AddExpress(s, parent)
	}, func(s *transport.StreamWire) error {
		if !i.paths.WantsExpress(parent) {
			return errUnwanted
		}
		return i.checkSilence(s)
	})
}
