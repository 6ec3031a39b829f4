package http2

import (
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A client that goes on after it has ended a stream breaks the rules of RFC 9113, section 5.1. A
// client whose frames cross a reset of ours does not, and must not lose its connection.
func TestFramesOnClosedStreams(t *testing.T) {
	ended := func(t *testing.T, c *crude) uint32 {
		id := c.ask("/app", true)
		synctest.Wait()
		return id
	}
	cancelled := func(t *testing.T, c *crude) uint32 {
		id := c.ask("/app/open", false)
		synctest.Wait()
		c.reset(id)
		synctest.Wait()
		return id
	}
	resetByUs := func(t *testing.T, c *crude) uint32 {
		id := c.next
		c.next += 2
		c.write(func() error { // a malformed request: the agent resets it
			c.block.Reset()
			return c.framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, EndHeaders: true,
				BlockFragment: c.encode(":method", "GET"),
			})
		})
		synctest.Wait()
		return id
	}
	skipped := func(t *testing.T, c *crude) uint32 {
		id := c.next
		c.next += 2
		ended(t, c)
		return id
	}
	data := func(c *crude, id uint32) {
		c.write(func() error { return c.framer.WriteData(id, true, []byte("more")) })
	}
	headers := func(c *crude, id uint32) {
		c.write(func() error {
			c.block.Reset()
			block := c.encode(":method", "GET", ":scheme", "http", ":authority", "catalog", ":path", "/app")
			return c.framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, EndStream: true, EndHeaders: true,
				BlockFragment: block,
			})
		})
	}
	for _, c := range []struct {
		name       string
		stream     func(*testing.T, *crude) uint32
		frame      func(*crude, uint32)
		reset      http2.ErrCode // of the stream
		connection bool          // the connection ends
	}{
		{name: "data after the end", stream: ended, frame: data, reset: http2.ErrCodeStreamClosed},
		{name: "data after the client's reset", stream: cancelled, frame: data, reset: http2.ErrCodeStreamClosed},
		{name: "data that crosses a reset", stream: resetByUs, frame: data, reset: http2.ErrCodeProtocol},
		{name: "headers after the end", stream: ended, frame: headers, connection: true},
		{name: "headers after the client's reset", stream: cancelled, frame: headers, connection: true},
		{name: "headers of a number that was skipped", stream: skipped, frame: headers, connection: true},
		{name: "trailers that cross a reset", stream: resetByUs, frame: headers, reset: http2.ErrCodeProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			open := func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/app/open" {
					<-r.Context().Done()
				}
			}
			limited(t, open, says("laptop"), func(t *testing.T, b *bench) {
				client := newCrude(t, b, false)
				id := c.stream(t, client)
				c.frame(client, id)
				synctest.Wait()
				client.mu.Lock()
				defer client.mu.Unlock()
				assert.Equal(t, c.connection, client.ended)
				assert.Equal(t, c.reset, client.resets[id])
			})
		})
	}
}

// RFC 7540, section 5.3.1.
func TestStreamThatDependsOnItself(t *testing.T) {
	limited(t, says("app"), says("laptop"), func(t *testing.T, b *bench) {
		c := newCrude(t, b, false)
		c.write(func() error {
			c.block.Reset()
			block := c.encode(":method", "GET", ":scheme", "http", ":authority", "catalog", ":path", "/app")
			return c.framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID:      1,
				EndStream:     true,
				EndHeaders:    true,
				BlockFragment: block,
				Priority:      http2.PriorityParam{StreamDep: 1},
			})
		})
		synctest.Wait()
		c.mu.Lock()
		assert.Equal(t, http2.ErrCodeProtocol, c.resets[1])
		assert.False(t, c.ended, "the connection goes on")
		c.mu.Unlock()
		c.write(func() error { return c.framer.WritePriority(3, http2.PriorityParam{StreamDep: 3}) })
		synctest.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		assert.True(t, c.ended, "a stream that is idle cannot be reset")
	})
}

func TestRecentIDsForgetTheOldest(t *testing.T) {
	var r recentIDs
	for id := range uint32(maxStreams + 2) {
		r.add(id)
	}
	assert.False(t, r.has(0))
	assert.False(t, r.has(1))
	assert.True(t, r.has(2))
	assert.True(t, r.has(maxStreams+1))
	assert.Len(t, r.ids, maxStreams)
}

// encode returns a header block of names and values. The caller holds the client's writing lock.
func (c *crude) encode(pairs ...string) []byte {
	for i := 0; i < len(pairs); i += 2 {
		assert.NoError(c.t, c.fields.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}))
	}
	return c.block.Bytes()
}
