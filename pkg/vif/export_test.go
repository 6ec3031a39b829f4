package vif

import (
	"golang.zx2c4.com/wireguard/device"

	"github.com/detour-dev/detour/pkg/vif/netstack"
	"github.com/detour-dev/detour/pkg/vif/transport"
	"github.com/detour-dev/detour/pkg/vif/tundev"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// The tests look at the parts.

func (h *Hub) Paths() *transport.Responder { return h.paths }

func (h *Hub) Stack() *netstack.Stack { return h.stack }

func (i *Interface) Paths() *transport.PathSelector { return i.paths }

func (i *Interface) Firewall() *tundev.Firewall { return i.firewall }

func (i *Interface) Device() *device.Device { return i.device }

func (i *Interface) Hub() wgkey.Key { return i.peer }

const StreamGrace = streamGrace

// SetClassMarkCheck replaces the check of the class mark, and returns how to put it back.
func SetClassMarkCheck(check func() error) (restore func()) {
	before := checkClassMark
	checkClassMark = check
	return func() { checkClassMark = before }
}
