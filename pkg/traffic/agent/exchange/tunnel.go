package exchange

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

// countingWriter counts its writes, so that others can tell whether a connection is quiet.
type countingWriter struct {
	io.Writer
	count *atomic.Uint64
}

// Write implements io.Writer.
func (w countingWriter) Write(b []byte) (int, error) {
	w.count.Add(1)
	return w.Writer.Write(b)
}

// tunnel joins the two sides for the rest of the connection: after an upgrade, or if nobody can
// tell where a message ends.
func (e *Exchange) tunnel(up *side) error {
	var activity atomic.Uint64
	var quiet atomic.Bool
	ctx, done := context.WithCancel(context.Background())
	defer done()
	stop := context.AfterFunc(e.config.Stopping, func() {
		if upstream.AwaitQuiet(ctx, func() (uint64, bool) { return activity.Load(), true }) {
			quiet.Store(true)
			_ = up.Close()
		}
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		e.sending.Wait()
		e.watch.stop()
		e.copyOnward(countingWriter{up.w, &activity}, up)
	})
	err := http1.CopyRaw(countingWriter{e.client.w, &activity}, up.r)
	if flushed := e.client.w.Flush(); err == nil {
		err = flushed
	}
	switch {
	case quiet.Load():
		err = e.finish()
	case err != nil:
		netx.Abort(e.local)
	default:
		netx.CloseWrite(e.client.Conn)
	}
	both.Wait()
	return err
}

// relayUntilEnd passes on an answer whose length not all recipients read in the same way. The
// client was told that the answer is the connection's last, and ends the connection after it. What
// the client says all the same does not reach this upstream, because nobody has looked whose it is.
func (e *Exchange) relayUntilEnd(up *side) error {
	var both sync.WaitGroup
	var ended atomic.Bool
	both.Go(func() {
		e.sending.Wait()
		e.watch.stop()
		if !ended.Load() {
			_, err := e.client.r.Peek(1)
			hangUp(up.Conn, err == nil || errors.Is(err, io.EOF))
		}
	})
	err := http1.CopyRaw(e.client.w, up.r)
	if flushed := e.client.w.Flush(); err == nil {
		err = flushed
	}
	_ = up.Close()
	if err != nil {
		netx.Abort(e.local)
	}
	ended.Store(true)
	_ = e.finish()
	both.Wait()
	return err
}

// onward passes on whatever else the client says.
func (e *Exchange) onward(up *side) { e.copyOnward(up.w, up) }

func (e *Exchange) copyOnward(w io.Writer, up *side) {
	err := http1.CopyRaw(w, e.client.r)
	if flushed := up.w.Flush(); err == nil {
		err = flushed
	}
	hangUp(up.Conn, err == nil)
}
