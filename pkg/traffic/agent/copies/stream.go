package copies

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/traffic/agent/budget"
)

// closeTimeout is how long a laptop may take for its last answers before the connection is closed.
const closeTimeout = time.Second

// Config is what a Stream needs of its agent.
type Config struct {
	Dial   func(context.Context) (net.Conn, error) // connects to the laptop
	Budget *budget.Budget                          // shared by all Streams
	OnLost func(n uint64)                          // counts the requests whose copies are lost; it must not block
	Go     func(task func())                       // runs a task; the agent waits for it
	Log    *slog.Logger
}

// Stream is the connection of a client to a laptop that gets copies. Requests follow one another as
// the client sent them: Begin, Write, Complete for each, and End after the last. What the laptop
// answers is dropped.
type Stream struct{ *buffer }

// New returns a Stream, which dials in the background: the original does not wait. The Stream ends
// after End, when ctx ends or when the laptop fails; see Broken.
func New(ctx context.Context, config Config) *Stream {
	b := newBuffer(config.Budget, config.OnLost)
	config.Go(func() {
		if err := b.run(ctx, config); err != nil {
			config.Log.Debug("a copy was dropped", "err", err)
		}
	})
	return &Stream{b}
}

func (b *buffer) run(ctx context.Context, config Config) error {
	c, err := config.Dial(ctx)
	if err != nil {
		b.drop(err)
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	drained := make(chan struct{})
	config.Go(func() { // ends when c does
		defer close(drained)
		_, _ = io.Copy(io.Discard, c)
		b.drop(io.ErrClosedPipe)
	})
	if err := b.passTo(c); !errors.Is(err, io.EOF) {
		return err
	}
	netx.CloseWrite(c)
	_ = c.SetReadDeadline(time.Now().Add(closeTimeout))
	<-drained // to close with unread answers would be a reset, which takes the last copies with it
	return nil
}
