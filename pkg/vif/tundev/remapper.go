package tundev

import (
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/remap"
)

// Remapper is a TUN on which the laptop sees some of the cluster's networks at other addresses.
type Remapper struct {
	tun.Device
	table atomic.Pointer[remap.Table] // nil: none
}

func (r *Remapper) Set(t remap.Table) {
	if len(t) == 0 {
		r.table.Store(nil)
		return
	}
	r.table.Store(&t)
}

func (r *Remapper) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := r.Device.Read(bufs, sizes, offset)
	if t := r.table.Load(); t != nil {
		for i := range n {
			t.Out(bufs[i][offset : offset+sizes[i]])
		}
	}
	return n, err
}

func (r *Remapper) Write(bufs [][]byte, offset int) (int, error) {
	if t := r.table.Load(); t != nil {
		for _, b := range bufs {
			t.In(b[offset:])
		}
	}
	return r.Device.Write(bufs, offset)
}
