// Package tundev is the laptop's network interface: a TUN, and what the operating system has to do
// for it (HostInterface).
//
// Open makes both for the operating system that detour runs on. Firewall, Remapper and Classifier
// are each put around a tun.Device and are one themselves, so that they stack; Offload passes large
// packets on as the kernel makes them. The package knows nothing of WireGuard's messages or of how
// they travel.
package tundev
