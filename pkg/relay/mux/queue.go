package mux

import "sync"

const chunkSize = 16 << 10

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// byteQueue is a queue of bytes in pooled chunks, so that a stream has no buffer while nothing
// waits on it.
type byteQueue struct{ chunks []chunk }

// chunk holds the bytes b[from:to].
type chunk struct {
	b        *[chunkSize]byte
	from, to int
}

// len returns the number of chunks, none of which is empty.
func (q *byteQueue) len() int { return len(q.chunks) }

func (q *byteQueue) add(b []byte) {
	for len(b) > 0 {
		last := len(q.chunks) - 1
		if last < 0 || q.chunks[last].to == chunkSize {
			q.chunks = append(q.chunks, chunk{b: chunkPool.Get().(*[chunkSize]byte)})
			last++
		}
		n := copy(q.chunks[last].b[q.chunks[last].to:], b)
		q.chunks[last].to += n
		b = b[n:]
	}
}

// take moves bytes from the front to b, and returns how many.
func (q *byteQueue) take(b []byte) (n int) {
	for n < len(b) && len(q.chunks) > 0 {
		first := &q.chunks[0]
		k := copy(b[n:], first.b[first.from:first.to])
		n += k
		first.from += k
		if first.from == first.to {
			chunkPool.Put(q.pop().b)
		}
	}
	return n
}

// pop removes the first chunk. The caller returns its buffer to chunkPool.
func (q *byteQueue) pop() chunk {
	first := q.chunks[0]
	q.chunks[0] = chunk{}
	q.chunks = q.chunks[1:]
	if len(q.chunks) == 0 {
		q.chunks = nil
	}
	return first
}

func (q *byteQueue) drop() {
	for len(q.chunks) > 0 {
		chunkPool.Put(q.pop().b)
	}
}
