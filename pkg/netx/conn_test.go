package netx

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// layer is a connection on another one.
type layer struct {
	net.Conn
	closed bool
}

func (l *layer) NetConn() net.Conn { return l.Conn }

func (l *layer) Close() error {
	l.closed = true
	return l.Conn.Close()
}

// cuttable is a connection that resets itself.
type cuttable struct {
	net.Conn
	aborted bool
}

func (c *cuttable) Abort() error { c.aborted = true; return nil }
func (c *cuttable) Close() error { return nil }

func TestBelowAndAsFollowTheLayers(t *testing.T) {
	bottom := &cuttable{}
	cork := &PrefixedConn{Conn: bottom}
	top := &layer{Conn: cork}
	require.Equal(t, net.Conn(bottom), Below(top))
	require.Equal(t, net.Conn(bottom), Below(bottom))
	found, ok := As[*PrefixedConn](top)
	require.True(t, ok)
	require.Equal(t, cork, found)
	_, ok = As[*net.TCPConn](top)
	require.False(t, ok)
}

func TestAbortResetsWhatIsBelow(t *testing.T) {
	bottom := &cuttable{}
	top := &layer{Conn: &PrefixedConn{Conn: bottom}}
	Abort(top)
	require.True(t, bottom.aborted)
	require.True(t, top.closed)
}

func TestCloseWriteReportsWhetherItIsSupported(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	require.False(t, CloseWrite(a))
}

func TestPrefixedConnReadsItsPrefixFirst(t *testing.T) {
	a, b := net.Pipe()
	go func() { _, _ = io.WriteString(b, " and more"); _ = b.Close() }()
	c := &PrefixedConn{Conn: a, Prefix: []byte("prefix")}
	short := make([]byte, 4)
	n, err := c.Read(short)
	require.NoError(t, err)
	require.Equal(t, "pref", string(short[:n]))
	rest, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "ix and more", string(rest))
	require.Nil(t, c.Prefix)
}

// scriptedListener accepts what its script says.
type scriptedListener struct {
	net.Listener
	script []error // nil accepts a connection
}

func (l *scriptedListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *scriptedListener) Accept() (net.Conn, error) {
	err := l.script[0]
	l.script = l.script[1:]
	if err != nil {
		return nil, err
	}
	return &cuttable{}, nil
}

func TestAcceptLoopSurvivesErrorsUntilTheListenerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		start, accepted := time.Now(), 0
		full := errors.New("too many open files")
		listener := &scriptedListener{script: []error{nil, full, nil, full, net.ErrClosed}}
		AcceptLoop(listener, slog.New(slog.NewTextHandler(&log, nil)), func(net.Conn) { accepted++ })
		require.Equal(t, 2, accepted)
		require.Equal(t, 2*AcceptPause, time.Since(start))
		require.Equal(t, 2, strings.Count(log.String(), "too many open files"))
	})
}
