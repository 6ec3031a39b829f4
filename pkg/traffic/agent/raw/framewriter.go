package raw

import (
	"net"
	"sync"

	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// frameWriter writes HTTP/2 frames to a client, and between two of them the request to open another
// connection.
type frameWriter struct {
	// mu guards the fields below, and orders the writes.
	mu     sync.Mutex
	frames sniff.Frames
	due    bool // the client is to be asked
	asked  bool
}

func (f *frameWriter) write(c net.Conn, b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := f.frames.Feed(b)
	if f.due && !f.asked && end >= 0 {
		f.asked = true
		if _, err := c.Write(b[:end]); err != nil {
			return err
		}
		if _, err := c.Write(sniff.Goaway); err != nil {
			return err
		}
		b = b[end:]
	}
	if len(b) == 0 {
		return nil
	}
	_, err := c.Write(b)
	return err
}

// ask asks the client to open another connection for its next requests, now or when the present
// frame ends.
func (f *frameWriter) ask(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due = true
	if f.asked || !f.frames.Between() {
		return
	}
	f.asked = true
	_, _ = c.Write(sniff.Goaway)
}
