package http2

import "slices"

// recentIDs remembers the streams that this end has reset while the client may have been sending.
// Frames that cross the reset on their way are not errors of the client. It holds at most
// maxStreams numbers, which is how many streams a client can have at once, and drops the oldest.
type recentIDs struct {
	ids  []uint32
	next int // where the next number goes once ids is full
}

func (r *recentIDs) add(id uint32) {
	if len(r.ids) < maxStreams {
		r.ids = append(r.ids, id)
		return
	}
	r.ids[r.next] = id
	r.next = (r.next + 1) % maxStreams
}

func (r *recentIDs) has(id uint32) bool { return slices.Contains(r.ids, id) }
