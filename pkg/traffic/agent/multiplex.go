package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/detour-dev/detour/pkg/relay/mux"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// lane is a relayed connection that carries the streams of a target.
type lane struct {
	opened chan struct{} // closed when it is known what became of it
	conn   *mux.Conn     // nil when it could not be had
	silent bool
	err    error
}

// lanes are the ways to the laptop of a target.
type lanes struct {
	mu    sync.Mutex
	now   *lane // takes new streams; nil while there are none
	plain bool  // the laptop takes no streams
}

var errPlain = errors.New("the laptop takes no streams")

// lane is the connection for a new stream, and whether it was there before; nil when the laptop takes no streams.
func (a *agent) lane(t *target) (l *lane, before bool) {
	t.lanes.mu.Lock()
	defer t.lanes.mu.Unlock()
	if t.lanes.plain {
		return nil, false
	}
	if t.lanes.now != nil {
		return t.lanes.now, true
	}
	l = &lane{opened: make(chan struct{})}
	t.lanes.now = l
	a.conns.Go(func() {
		defer t.leave(l)
		a.carry(t, l)
	})
	return l, false
}

// leave has the next stream begin a new connection.
func (t *target) leave(l *lane) {
	t.lanes.mu.Lock()
	defer t.lanes.mu.Unlock()
	if t.lanes.now == l {
		t.lanes.now = nil
	}
}

// renew has the next stream begin a new connection, as the one there is may lead through a manager that is gone.
func (t *target) renew() {
	t.lanes.mu.Lock()
	defer t.lanes.mu.Unlock()
	t.lanes.plain = false
	l := t.lanes.now
	if l == nil {
		return
	}
	select {
	case <-l.opened:
		t.lanes.now = nil
		if l.conn != nil {
			l.conn.Retire()
		}
	default: // the manager says what it thinks of the old token
	}
}

// carry opens a lane and serves it to its end.
func (a *agent) carry(t *target, l *lane) {
	ctx, cancel := context.WithTimeout(t.ctx, relayTimeout)
	defer cancel()
	conn, status, err := a.ask(ctx, t, &agentv1.RelayHeader{Multiplexed: true})
	switch {
	case err == nil && status == agentv1.RelayStatus_RELAY_STATUS_OK:
		// An older daemon has joined it to the local process, as it would any.
		_ = conn.Close()
		l.err = errPlain
		t.lanes.mu.Lock()
		t.lanes.plain = true
		t.lanes.mu.Unlock()
	case err == nil && status == agentv1.RelayStatus_RELAY_STATUS_MULTIPLEXED:
		l.conn = mux.New(conn, nil)
		l.conn.OnSilence(func() { a.fallsSilent(t, l) })
	default:
		if conn != nil {
			_ = conn.Close()
		}
		l.silent, l.err = unheard(status, err), errors.Join(fmt.Errorf("the relay answered %s", status), err)
	}
	close(l.opened)
	if l.conn == nil {
		return
	}
	stop := context.AfterFunc(t.ctx, l.conn.Retire)
	defer stop()
	err = l.conn.Run()
	a.log.Debug("a lane has ended", "intercept", t.Uid, "err", err)
}

// fallsSilent has the app answer until the laptop can be reached again. What the laptop has taken may still be answered on the lane.
func (a *agent) fallsSilent(t *target, l *lane) {
	t.leave(l)
	l.conn.Retire()
	a.log.Debug("the laptop has fallen silent", "intercept", t.Uid)
	a.leaveOut(t, &agentv1.RelayHeader{})
}

// stream opens a stream to the laptop. silent says that nobody has said anything of it.
func (a *agent) stream(ctx context.Context, t *target, header *agentv1.RelayHeader) (_ net.Conn, silent bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	for {
		l, before := a.lane(t)
		if l == nil {
			return a.relayed(ctx, t, header)
		}
		select {
		case <-l.opened:
		case <-ctx.Done():
			return nil, true, ctx.Err()
		}
		if l.conn == nil {
			if errors.Is(l.err, errPlain) || t.ctx.Err() != nil {
				return a.relayed(ctx, t, header)
			}
			return nil, l.silent, l.err
		}
		s, err := l.conn.Open(ctx, &agentv1.RelayHeader{Source: header.Source, Destination: header.Destination})
		var refused *mux.RefusedError
		switch {
		case err == nil:
			return s, false, nil
		case errors.As(err, &refused):
			return nil, unheard(refused.Status, nil), err
		case errors.Is(err, mux.ErrTooManyStreams) || t.ctx.Err() != nil:
			return a.relayed(ctx, t, header)
		}
		t.leave(l)
		l.conn.Retire()
		if ctx.Err() != nil || !before {
			return nil, true, err
		}
		// It has ended since.
	}
}
